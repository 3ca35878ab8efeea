"""Questions that the server publishes during a run, and votes: who may send what, which ids are legal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from lada.config import ExchangeOptions
from lada.driver import Driver
from lada.errors import DataError, ExchangeError
from lada.inbox import Inbox
from lada.incoming import check_commit, published_questions, published_schema
from lada.layers import read_run
from lada.manifest import Outbox, Payload
from lada.payloads import Origin
from lada.plan import PlannedStep, read_plan
from lada.provenance import run_hashes
from lada.records import SampleId, parse_jsonl
from lada.rundir import RunDir, Stage
from lada.synthetic import VOTES, Synthetic, check_numbering, read_votes, synthetic_id
from tests.fake_runs import IDS, ScriptedLauncher, commit_stage, drive, make_run, records

pytestmark = pytest.mark.usefixtures("no_fsync")

LIMITS = ExchangeOptions()
WRITE, VOTE = PlannedStep(name="write", roles=("server",)), PlannedStep(name="vote", roles=("client",))
ASK = PlannedStep(name="ask", roles=("client",))
STEPS = (WRITE, VOTE, ASK)
SERVER_WRITES, CLIENT_VOTES = Stage(1, "write", "server"), Stage(1, "vote", "client-1")
CLIENT_ASKS = Stage(1, "ask", "client-1")


def question(position: int, **changes: object) -> Synthetic:
    content = {
        "id": synthetic_id(position),
        "question": f"What is {position} + 1?",
        "options": [f"{position + gap}" for gap in range(4)],
        "rationale": f"{position} + 1 = {position + 1} B.",
        "answer": "B",
    }
    return Synthetic.model_validate(content | changes)


def questions(numbers: Sequence[int]) -> Outbox:
    outbox = Outbox()
    written = [question(number) for number in numbers]
    outbox.send("all", "questions.jsonl", records("questions", written))
    return outbox


def votes(near: NDArray[np.float32], far: NDArray[np.float32] | None = None) -> Outbox:
    outbox = Outbox()
    content = save({"near": near, "far": near if far is None else far})
    outbox.send("server", VOTES, Payload("votes", len(near), bytes(content)))
    return outbox


def ids(*names: str) -> Outbox:
    outbox = Outbox()
    outbox.send("server", "ids.jsonl", records("ids", [SampleId(id=name) for name in names]))
    return outbox


def ones(count: int) -> NDArray[np.float32]:
    return np.ones(count, dtype=np.float32)


def refused(function: Callable[[], object], check: str, stage: Stage | None = None) -> str:
    with pytest.raises(ExchangeError) as caught:
        function()
    assert caught.value.check == check
    assert stage is None or (caught.value.party, caught.value.stage) == (stage.party, stage.name)
    return caught.value.detail


def check(run: RunDir, stage: Stage, known: int = 0) -> None:
    earlier = [synthetic_id(position) for position in range(known)]
    check_commit(run, stage, limits=LIMITS, public_ids=IDS, synthetic_ids=earlier)


def checked(root: Path, stage: Stage, outbox: Outbox, known: int = 0) -> Callable[[], None]:
    run = make_run(root, steps=STEPS)
    commit_stage(run, stage, outbox=outbox)
    return lambda: check(run, stage, known)


# -- questions


def test_the_server_may_publish_questions_to_all(tmp_path: Path) -> None:
    checked(tmp_path, SERVER_WRITES, questions([3, 4]), known=3)()


@pytest.mark.parametrize("numbers, known", [([1], 0), ([0, 2], 0), ([0, 0], 0), ([0], 1), ([2, 1], 1)])
def test_ids_are_positions_in_the_order_of_publication(
    tmp_path: Path, numbers: list[int], known: int
) -> None:
    with pytest.raises(ExchangeError) as caught:
        checked(tmp_path, SERVER_WRITES, questions(numbers), known)()
    assert caught.value.check in ("synthetic-ids", "once")


def test_a_synthetic_question_never_takes_the_id_of_a_public_one() -> None:
    origin = Origin("server", "r01-write", "questions.jsonl")
    check_numbering([question(0)], origin, first=0, public_ids={"q1"})
    taken = {synthetic_id(0)}
    refused(lambda: check_numbering([question(0)], origin, first=0, public_ids=taken), "synthetic-ids")


def test_a_client_may_not_publish_a_question(tmp_path: Path) -> None:
    """The one record that could hold a private question is refused from whoever has one."""
    detail = refused(checked(tmp_path, CLIENT_VOTES, questions([0])), "sender", CLIENT_VOTES)
    assert "server" in detail


@pytest.mark.parametrize("recipient, name", [("client-1", "questions.jsonl"), ("all", "more.jsonl")])
def test_questions_go_to_all_under_their_one_name(tmp_path: Path, recipient: str, name: str) -> None:
    outbox = Outbox()
    outbox.send(recipient, name, records("questions", [question(0)]))
    refused(checked(tmp_path, SERVER_WRITES, outbox), "sender", SERVER_WRITES)


def test_nothing_else_may_have_the_questions_name(tmp_path: Path) -> None:
    outbox = Outbox()
    outbox.send("all", "questions.jsonl", records("ids", [SampleId(id="q1")]))
    refused(checked(tmp_path, SERVER_WRITES, outbox), "kind", SERVER_WRITES)


@pytest.mark.parametrize(
    "changes",
    [
        {"options": ["1", "2", "2 ", "4"]},
        {"options": ["1", "2", " ", "4"]},
        {"options": ["1", "2", "3"]},
        {"options": "1234"},
        {"answer": "E"},
        {"rationale": ""},
        {"question": ""},
        {"id": "q1"},
        {"domain": "sums"},
        {"question": "x" * 65_537},
    ],
    ids=str,
)
def test_a_question_that_is_not_whole_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        question(0, **changes)


def test_a_question_comes_back_as_it_was_and_as_a_solved_item() -> None:
    one = question(0, question="Is {x} \\frac{1}{2} of {y}?")
    (again,) = parse_jsonl(Synthetic, one.model_dump_json(), source="test")
    assert again == one
    solved = one.item()
    assert (solved.question, solved.answer, solved.rationale) == (one.question, "B", one.rationale)
    with pytest.raises(DataError):
        parse_jsonl(Synthetic, '{"id": "syn-000000"}', source="test")


# -- votes


def test_a_client_may_send_votes_on_what_was_published_before(tmp_path: Path) -> None:
    checked(tmp_path, CLIENT_VOTES, votes(ones(3), -ones(3)), known=3)()


@pytest.mark.parametrize(
    "content, check_name",
    [
        ({"near": ones(2), "far": ones(3)}, "tensor-schema"),
        ({"near": ones(4), "far": ones(4)}, "tensor-schema"),
        ({"near": ones(3)}, "tensor-keys"),
        ({"near": ones(3), "far": ones(3), "names": ones(3)}, "tensor-keys"),
        ({"near": ones(3).astype(np.float64), "far": ones(3)}, "tensor-schema"),
        ({"near": ones(3) * np.nan, "far": ones(3)}, "finite"),
        ({"near": ones(3), "far": ones(3) * np.inf}, "finite"),
        ({"near": ones(3), "far": ones(3) * -2e6}, "votes"),
    ],
)
def test_votes_of_another_form_are_refused(
    tmp_path: Path, content: dict[str, NDArray[np.float32]], check_name: str
) -> None:
    outbox = Outbox()
    outbox.send("server", VOTES, Payload("votes", 3, bytes(save(content))))
    refused(checked(tmp_path, CLIENT_VOTES, outbox, known=3), check_name, CLIENT_VOTES)


def test_votes_are_as_many_as_the_manifest_says(tmp_path: Path) -> None:
    outbox = Outbox()
    outbox.send("server", VOTES, Payload("votes", 2, votes(ones(3)).public["server"][VOTES].data))
    refused(checked(tmp_path, CLIENT_VOTES, outbox, known=3), "item-count", CLIENT_VOTES)


def test_votes_come_from_clients_to_the_server_alone(tmp_path: Path) -> None:
    payload = votes(ones(1)).public["server"][VOTES]
    for number, (stage, recipient, name) in enumerate(
        [
            (SERVER_WRITES, "server", VOTES),
            (CLIENT_VOTES, "all", VOTES),
            (CLIENT_VOTES, "server", "adapter.safetensors"),
        ]
    ):
        outbox = Outbox()
        outbox.send(recipient, name, payload)
        refused(checked(tmp_path / str(number), stage, outbox, known=1), "sender", stage)


def test_votes_are_no_adapter(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=STEPS)
    commit_stage(run, CLIENT_VOTES, outbox=votes(ones(2)))
    assert published_schema(run, CLIENT_VOTES) is None


def test_votes_on_nothing_are_legal_and_empty() -> None:
    content = votes(ones(0)).public["server"][VOTES].data
    found = read_votes(content, Origin("client-1", "r01-vote", VOTES), num_questions=0, most=5)
    assert {key: len(value) for key, value in found.items()} == {"near": 0, "far": 0}


# -- which ids are legal, and when


def behave(*outboxes: Outbox) -> Callable[[RunDir, Stage, str], int]:
    """An attempt that commits the given content, the first one first, the last one ever after."""
    rest = itertools.chain(outboxes[:-1], itertools.repeat(outboxes[-1]))

    def attempt(run: RunDir, stage: Stage, name: str) -> int:
        commit_stage(run, stage, attempt=name, outbox=next(rest))
        return 0

    return attempt


def script(*asked: str) -> dict[str, list[Callable[[RunDir, Stage, str], int]]]:
    return {
        "server/r01-write": [behave(questions([0, 1]))] * 4,
        "client-1/r01-vote": [behave(votes(ones(2)))] * 4,
        "client-1/r01-ask": [behave(ids(*(asked or ("q0", "syn-000001"))))] * 4,
        "server/r02-write": [behave(questions([2]))] * 4,
        "client-1/r02-vote": [behave(votes(ones(3)))] * 4,
        "client-1/r02-ask": [behave(ids("syn-000002", "syn-000000", "q5"))] * 4,
    }


def test_published_questions_extend_the_legal_ids(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=STEPS)
    drive(run, script())
    assert not run.rejected("client-1").exists()
    found = published_questions(run, ["r01-write", "r02-write"], limits=LIMITS, run_hashes=run_hashes(run))
    assert [one.id for one in found] == [synthetic_id(position) for position in range(3)]


def test_an_id_is_not_legal_before_the_stage_that_follows_its_publication(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=STEPS)
    drive(run, script() | {"client-1/r01-ask": [behave(ids("syn-000002")), behave(ids("syn-000001"))]})
    (path,) = run.rejected("client-1").glob("r01-ask.*/reason.txt")
    reason = path.read_text()
    assert "public-ids" in reason and "syn-000002" in reason


def test_questions_of_the_same_stage_give_no_legal_id_yet(tmp_path: Path) -> None:
    both = questions([0])
    both.send("client-1", "ids.jsonl", records("ids", [SampleId(id=synthetic_id(0))]))
    refused(checked(tmp_path, SERVER_WRITES, both), "public-ids", SERVER_WRITES)


def test_a_restarted_driver_knows_the_same_legal_ids(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=STEPS)
    drive(run, script(), rounds=1)
    again = ScriptedLauncher(run, script())
    driver = Driver(run, again, poll_seconds=0.0)
    driver.drive()
    assert again.started == ["server/r02-write", "client-1/r02-vote", "client-1/r02-ask"]
    assert not run.rejected("client-1").exists()


def test_questions_that_broke_are_published_again_and_what_was_built_on_them_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=STEPS)
    drive(run, script())
    before = {path: path.read_bytes() for path in (run.root / "exchange").rglob("*.jsonl")}
    (run.commit(SERVER_WRITES) / "public" / "all" / "questions.jsonl").write_text("")
    drive(run, script())
    assert {path: path.read_bytes() for path in (run.root / "exchange").rglob("*.jsonl")} == before
    (path,) = run.rejected("server").glob("r01-write.*/reason.txt")
    assert "size" in path.read_text()


def test_a_message_that_is_gone_from_the_exchange_comes_back_before_ids_are_checked(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=STEPS)
    drive(run, script())
    path = run.root / "exchange" / "server" / "all" / "r01-write" / "questions.jsonl"
    content = path.read_bytes()
    path.unlink()
    assert drive(run, script()).started == []
    assert path.read_bytes() == content and not run.rejected("client-1").exists()


# -- what a party reads


def inbox(run: RunDir, stage: Stage) -> Inbox:
    return Inbox(run, read_run(run.root), read_plan(run), stage)


def test_a_party_reads_all_questions_and_votes_on_those_that_were_there(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=STEPS)
    drive(run, script())
    opened = inbox(run, Stage(2, "vote", "client-1"))
    assert [one.id for one in opened.questions(steps=["write"])] == ["syn-000000", "syn-000001", "syn-000002"]
    assert set(opened.read) == {"server/all/r01-write", "server/all/r02-write"}, "recorded as inputs"
    server = inbox(run, Stage(2, "write", "server"))
    found, origin = server.votes("client-1", steps=["vote"])
    assert len(found["near"]) == len(server.questions(steps=["write"])) == 2
    assert (origin.party, origin.stage, origin.file) == ("client-1", "r01-vote", VOTES)
    assert server.latest("client-1", "ids.jsonl", SampleId, steps=["ask"])[1].id == "syn-000001"


def test_before_any_vote_there_is_an_empty_one(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=STEPS)
    found, _ = inbox(run, SERVER_WRITES).votes("client-1", steps=["vote"])
    assert found["near"].shape == found["far"].shape == (0,)


def test_a_missing_message_is_never_read_as_no_questions(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=STEPS)
    commit_stage(run, SERVER_WRITES, outbox=questions([0]))  # committed, not published
    reader = inbox(run, CLIENT_VOTES)
    refused(lambda: reader.questions(steps=["write"]), "missing", SERVER_WRITES)


def test_a_reader_refuses_a_forged_message_of_questions(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=STEPS)
    drive(run, script())
    path = run.root / "exchange" / "server" / "all" / "r02-write" / "questions.jsonl"
    path.write_text(path.read_text().replace("syn-000002", "syn-000001"))
    reader = inbox(run, Stage(2, "vote", "client-1"))
    refused(lambda: reader.questions(steps=["write"]), "sha256", Stage(2, "write", "server"))
