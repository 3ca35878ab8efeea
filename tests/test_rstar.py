"""rStar as a whole on tiny federations of real lab models: who sends what, what each switch changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lada.config import SERVER, ExchangeOptions
from lada.errors import ExchangeError
from lada.exchange import message_dir
from lada.methods.rstar import Config
from lada.payloads import Origin, check_records
from lada.records import MAX_TRACES, SampleId, SampleLog, Trace, Verdict, read_jsonl
from lada.rundir import RunDir, Stage
from tests.federation import commit, drive, metrics
from tests.federation import make as make_run
from tests.pauses import check_same_bytes

pytestmark = pytest.mark.slow
SMALL = (
    "data.num_train=8",
    "data.num_test=4",
    "data.num_public=8",
    "generation.max_new_tokens=40",
    "training.client.batch_size=2",
    "method.search.rollouts=2",
    "rounds=1",
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(runs: Path, *settings: str, **named: str) -> RunDir:
    """A run of real lab models that takes a few seconds; 8 questions leave some that are disputed."""
    return make_run(runs, *SMALL, *settings, small=False, method="rstar", **named)


@pytest.fixture(scope="module")
def three_clients(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("three"), "rounds=2", scenario="1"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return drive(make(tmp_path_factory.mktemp("reference")))


@pytest.fixture(scope="module")
def above(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Reading R3."""
    return drive(make(tmp_path_factory.mktemp("above"), "method.reading=R3"))


def sent(run: RunDir, sender: str, recipient: str, stage: str) -> list[Trace]:
    return read_jsonl(Trace, message_dir(run, sender, recipient, stage) / "traces.jsonl")


def trained_on(run: RunDir, client: str, round: int = 1) -> list[SampleLog]:
    return read_jsonl(SampleLog, commit(run, round, "learn", client) / "samples.jsonl")


def values(run: RunDir) -> dict[tuple[int, str, str], float]:
    return {key: value for key, value in metrics(run).items() if not key[2].startswith("bytes_")}


def test_every_client_is_measured_every_round_and_learns_its_own_selection(three_clients: RunDir) -> None:
    found = metrics(three_clients)
    kept = set()
    for client in ("client-1", "client-2", "client-3"):
        for number in range(3):
            assert 0 <= found[number, client, "accuracy"] <= 1
        for number in (1, 2):
            logs = trained_on(three_clients, client, number)
            assert found[number, client, "trained_samples"] == len(logs)
            assert found[number, client, "kept_share"] == len(logs) / 8
            assert {log.selected_by for log in logs} == {"mutual_consistency"}
            kept.add(frozenset(log.id for log in logs))
    assert len(kept) > 1, "each discriminator has an opinion of its own"
    assert found[0, SERVER, "accuracy"] == found[0, SERVER, "accuracy_base"]


def test_the_server_searches_once_and_sends_the_same_traces_to_all(three_clients: RunDir) -> None:
    traces = sent(three_clients, SERVER, "all", "r00-search")
    found = metrics(three_clients)
    assert found[0, SERVER, "traces"] == len(traces) >= 8
    assert found[0, SERVER, "solved_questions"] == len({one.id for one in traces})
    assert max(one.place for one in traces) <= 8
    first = [one for one in traces if one.place == 1]
    assert len(first) == len({one.id for one in traces})
    for client in ("client-1", "client-2"):
        chosen = {log.id: log.chosen for log in trained_on(three_clients, client)}
        known = {(one.id, one.letter) for one in traces}
        assert chosen.items() <= known


def test_bytes_are_those_of_the_matrix(three_clients: RunDir) -> None:
    """Baselines, section 10: down n·b times the traces of a question, up nothing but adapters."""
    found = {key: value for key, value in metrics(three_clients).items() if "bytes_sent/" in key[2]}
    path = message_dir(three_clients, SERVER, "all", "r00-search") / "traces.jsonl"
    traces = sent(three_clients, SERVER, "all", "r00-search")
    frame = sum(
        len(json.dumps({**one.model_dump(), "text": ""}, sort_keys=True, ensure_ascii=False)) + 1
        for one in traces
    )
    content = sum(len(json.dumps(one.text, ensure_ascii=False).encode()) - 2 for one in traces)
    assert found[0, SERVER, "bytes_sent/search/all/traces"] == path.stat().st_size == frame + content
    kinds = {(key[1] == SERVER, key[2].rsplit("/", 1)[1]) for key in found}
    assert kinds == {(True, "traces"), (False, "adapters")}
    files = [path for path in (three_clients.root / "exchange").rglob("*") if path.is_file()]
    assert sum(found.values()) == sum(p.stat().st_size for p in files if p.name != "manifest.json")


def test_no_party_is_given_the_public_questions_answers(three_clients: RunDir) -> None:
    public = {question.id for question in three_clients.public_questions()}
    for path in (three_clients.root / "parties").rglob("data/*"):
        assert not any(name in path.read_text() for name in public), path


def test_the_same_run_twice_gives_the_same_bytes(reference: RunDir, tmp_path: Path) -> None:
    assert drive(make(tmp_path)).metrics_csv.read_bytes() == reference.metrics_csv.read_bytes()


def test_another_seed_gives_other_traces(reference: RunDir, tmp_path: Path) -> None:
    other = drive(make(tmp_path, "seed=1", "dataset.split_seed=0"))
    one, two = (sent(run, SERVER, "all", "r00-search") for run in (reference, other))
    assert {trace.id for trace in one} == {trace.id for trace in two}
    assert one != two


def test_it_runs_with_models_of_one_family_and_one_shot(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "shots=1", "data.num_public=6", scenario="3", dataset="lab-cot"))
    assert metrics(run)[1, "client-3", "accuracy"] >= 0


# -- reading R3


def test_in_r3_traces_go_up_and_verdicts_come_down(above: RunDir) -> None:
    traces = sent(above, "client-1", SERVER, "r01-search")
    path = message_dir(above, SERVER, "client-1", "r01-verify") / "verdicts.jsonl"
    verdicts = read_jsonl(Verdict, path)
    assert {(one.id, one.place) for one in verdicts} == {(one.id, one.place) for one in traces}
    passed = {(one.id, one.letter) for one in traces} & {
        (one.id, trace.letter)
        for one in verdicts
        for trace in traces
        if one.consistent and (trace.id, trace.place) == (one.id, one.place)
    }
    logs = trained_on(above, "client-1")
    assert {log.id for log in logs} == {name for name, _ in passed}
    assert {(log.id, log.chosen) for log in logs} <= passed
    found = metrics(above)
    assert found[1, SERVER, "traces_consistent/client-1"] == sum(one.consistent for one in verdicts)
    assert (1, "client-1", "bytes_sent/search/server/traces") in found
    assert not [key for key in found if key[1] == SERVER and key[2].endswith("/traces")]


def test_in_r3_the_client_searches_anew_with_what_it_has_learnt(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "method.reading=R3", "rounds=2", "data.num_public=4"))
    first, second = (sent(run, "client-1", SERVER, f"r0{number}-search") for number in (1, 2))
    assert [one.text for one in first] != [one.text for one in second]


def test_in_r3_without_a_discriminator_nothing_is_sent(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "method.reading=R3", "method.discriminator=false", "data.num_public=4"))
    assert {key[2].rsplit("/", 1)[1] for key in metrics(run) if "bytes_sent/" in key[2]} == {"adapters"}
    assert metrics(run)[1, "client-1", "trained_samples"] == metrics(run)[1, "client-1", "solved_questions"]


# -- switches


def test_majority_only_learns_every_solved_question(reference: RunDir, tmp_path: Path) -> None:
    run = drive(make(tmp_path, "method.discriminator=false"))
    logs = trained_on(run, "client-1")
    traces = sent(run, SERVER, "all", "r00-search")
    assert {log.id for log in logs} == {trace.id for trace in traces}
    assert {log.selected_by for log in logs} == {"majority"}
    assert len(trained_on(reference, "client-1")) < len(logs)
    assert "checked_completions" not in {key[2] for key in metrics(run)}


def test_without_checking_sure_answers_more_is_learnt_with_less_work(
    reference: RunDir, tmp_path: Path
) -> None:
    found = metrics(drive(make(tmp_path, "method.check.skip_above=0.999")))
    base = metrics(reference)
    skipped = (1, "client-1", "questions_unchecked")
    assert base[skipped] == 0 < found[skipped]
    key = (1, "client-1", "checked_completions")
    assert found[key] < base[key]
    assert found[1, "client-1", "kept_share"] > base[1, "client-1", "kept_share"]


def test_two_traces_of_a_question_share_its_weight(tmp_path: Path) -> None:
    wide = ("method.search.temperature=3.0", "method.discriminator=false", "data.num_public=4")
    one, two = (drive(make(tmp_path, *wide, f"method.traces_per_question={count}")) for count in (1, 2))
    steps = (1, "client-1", "optimiser_steps")
    assert metrics(one)[steps] == metrics(two)[steps]
    loss = (1, "client-1", "train_loss_first")
    assert metrics(one)[loss] != metrics(two)[loss]


def test_fewer_traces_are_sent_when_asked(tmp_path: Path) -> None:
    wide = ("method.search.temperature=3.0", "data.num_public=4")
    few = sent(drive(make(tmp_path, *wide, "method.max_traces=1")), SERVER, "all", "r00-search")
    many = sent(drive(make(tmp_path, *wide)), SERVER, "all", "r00-search")
    assert few == [trace for trace in many if trace.place == 1]
    assert len(many) > len(few)


def test_preference_learns_against_the_own_reasoning(reference: RunDir, tmp_path: Path) -> None:
    one, other = (
        metrics(drive(make(tmp_path, "method.loss=preference", f"method.beta={beta}"))) for beta in (0.1, 0.5)
    )
    base = metrics(reference)
    ratio = (1, "client-1", "chosen_log_ratio")
    assert ratio in one and ratio not in base
    assert one[1, "client-1", "train_loss_first"] == pytest.approx(0.6931, abs=0.02)
    assert one[1, "client-1", "train_loss"] != other[1, "client-1", "train_loss"]
    assert one[1, "client-1", "trained_samples"] <= base[1, "client-1", "trained_samples"]


def test_replayed_ids_bound_what_is_learnt(tmp_path: Path) -> None:
    few = ("rounds=1", "method.cold.mode=medoid")
    lada = drive(make_run(tmp_path, *SMALL[:4], *few, small=False, method="lada"))
    run = drive(make(tmp_path, f"method.replay={lada.root.name}", "method.discriminator=false"))
    path = message_dir(lada, "client-1", SERVER, "r00-prepare") / "ids.jsonl"
    asked = {one.id for one in read_jsonl(SampleId, path)}
    assert 0 < len(asked) < 8
    assert {log.id for log in trained_on(run, "client-1")} == asked


def test_defaults_are_the_pages() -> None:
    options = Config()
    assert (options.reading, options.discriminator, options.max_traces) == ("R2", True, 8)
    assert (options.traces_per_question, options.loss) == (1, "cross_entropy")
    assert (options.check.masks, options.check.shortest, options.check.longest) == (4, 0.2, 0.5)
    assert options.check.temperature == 1.0
    with pytest.raises(ValueError, match="traces_per_question"):
        Config(traces_per_question=3)


# -- messages


def line(**changes: object) -> bytes:
    record = {"id": "q1", "place": 1, "text": "so", "letter": "A", "reward": 0.5} | changes
    return (json.dumps(record) + "\n").encode()


def refused(content: bytes) -> str:
    with pytest.raises(ExchangeError) as caught:
        check_records(
            Trace,
            content,
            Origin(SERVER, "r00-search", "traces.jsonl"),
            limits=ExchangeOptions(),
            legal_ids={"q1"},
        )
    return caught.value.check


def test_traces_of_a_message_are_checked() -> None:
    origin, limits = Origin(SERVER, "r00-search", "traces.jsonl"), ExchangeOptions()
    both = line() + line(place=2)
    assert len(check_records(Trace, both, origin, limits=limits, legal_ids={"q1"})) == 2
    assert refused(line() + line(text="other")) == "once"
    assert refused(line(id="q2")) == "public-ids"
    for wrong in (
        {"place": 0},
        {"place": MAX_TRACES + 1},
        {"place": "1"},
        {"text": ""},
        {"text": "x" * 20_000},
        {"letter": "E"},
        {"reward": 1.5},
        {"reward": -0.1},
        {"question": "secret"},
    ):
        assert refused(line(**wrong)) == "schema", wrong
    assert refused(line().replace(b"0.5", b"NaN")) == "schema"


@pytest.mark.parametrize(
    ("stage", "every", "inside"),
    [
        (Stage(1, "search", "client-1"), 50, {"generate"}),
        (Stage(1, "verify", SERVER), 20, {"generate"}),
        (Stage(1, "learn", "client-1"), 20, {"generate"}),
    ],
    ids=["search", "verify", "learn"],
)
def test_a_paused_stage_commits_the_same_bytes(
    stage: Stage, every: int, inside: set[str], above: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same_bytes(above, stage, tmp_path, monkeypatch, every=every, inside=inside)


def test_a_paused_client_that_checks_commits_the_same_bytes(
    reference: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Stage(1, "learn", "client-1")
    check_same_bytes(reference, learn, tmp_path, monkeypatch, every=20, inside={"generate"})
