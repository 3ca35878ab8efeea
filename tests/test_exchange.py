"""Commit, publish, read: what is whole passes, everything else is an ExchangeError that names itself."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from lada.config import ExchangeOptions
from lada.errors import ExchangeError
from lada.exchange import (
    commit,
    committed_stages,
    exchange_root,
    inbox_messages,
    is_published_whole,
    message_dir,
    publish,
    reject,
    sweep,
    withdraw,
)
from lada.incoming import check_commit, message_records, published_schema, read_message
from lada.manifest import MANIFEST, Manifest, Outbox, Payload, read_manifest
from lada.records import Response, SampleId
from lada.rundir import RunDir, Stage, dump_json, sha256
from tests.fake_runs import IDS, adapter, commit_and_publish, commit_stage, full_outbox, make_run

pytestmark = pytest.mark.usefixtures("no_fsync")

STAGE = Stage(1, "learn", "client-1")
LIMITS = ExchangeOptions()


@pytest.fixture()
def run(tmp_path: Path) -> RunDir:
    found = make_run(tmp_path)
    commit_and_publish(found, STAGE)
    return found


def check(run: RunDir, stage: Stage = STAGE, limits: ExchangeOptions = LIMITS) -> Manifest:
    schema = {"layer.weight": ("F32", (2, 3))}
    return check_commit(run, stage, limits=limits, public_ids=IDS, adapter_schema=schema)


def read(run: RunDir, recipient: str = "server", stage: Stage = STAGE):  # type: ignore[no-untyped-def]
    run_hashes = {sha256(run.run_yaml.read_bytes())}
    return read_message(run, stage.party, recipient, stage.name, limits=LIMITS, run_hashes=run_hashes)


def refused(function: Callable[[], object], check_name: str, file: str, stage: Stage = STAGE) -> str:
    with pytest.raises(ExchangeError) as caught:
        function()
    error = caught.value
    assert (error.party, error.stage, error.check, error.file) == (stage.party, stage.name, check_name, file)
    assert all(part in str(error) for part in (stage.party, stage.name, check_name, file))
    return error.detail


def reseal(folder: Path, **changes: object) -> None:
    """Make the manifests of a tampered commit agree with its files again, as a clever forger would."""
    for path in sorted(folder.rglob(MANIFEST), key=lambda path: -len(path.parts)):
        content = json.loads(path.read_text())
        for entry in content["files"]:
            data = (path.parent / entry["path"]).read_bytes()
            entry |= {"bytes": len(data), "sha256": sha256(data)}
        path.write_text(dump_json(content | changes))


# -- what is whole


def test_a_commit_passes_its_checks_and_lists_every_file(run: RunDir) -> None:
    manifest = check(run)
    listed = {entry.path: entry for entry in manifest.files}
    assert set(listed) == {
        "public/server/ids.jsonl",
        "public/server/responses.jsonl",
        "public/all/rewards.jsonl",
        "public/all/adapter.safetensors",
        "metrics.json",
        "samples.jsonl",
        "state/memory.json",
    }
    entry = listed["public/server/ids.jsonl"]
    assert (entry.kind, entry.items) == ("ids", 3)
    assert entry.bytes == (run.commit(STAGE) / entry.path).stat().st_size
    assert (manifest.party, manifest.stage, manifest.attempt) == ("client-1", "r01-learn", "01-a")


def test_only_what_is_addressed_to_others_is_published(run: RunDir) -> None:
    root = run.root / "exchange"
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()) == [
        "client-1/all/r01-learn/adapter.safetensors",
        "client-1/all/r01-learn/manifest.json",
        "client-1/all/r01-learn/rewards.jsonl",
        "client-1/server/r01-learn/ids.jsonl",
        "client-1/server/r01-learn/manifest.json",
        "client-1/server/r01-learn/responses.jsonl",
    ]


def test_a_message_reads_back(run: RunDir) -> None:
    message = read(run)
    ids = message_records(message, "ids.jsonl", SampleId, limits=LIMITS, legal_ids=IDS)
    assert [record.id for record in ids] == list(IDS[:3])
    assert message_records(message, "none.jsonl", SampleId, limits=LIMITS, legal_ids=IDS) == []
    assert message.name == "client-1/server/r01-learn"
    assert message.digest == sha256(
        (message_dir(run, "client-1", "server", "r01-learn") / MANIFEST).read_bytes()
    )


def test_messages_of_a_party_are_found_by_recipient_and_stage(run: RunDir) -> None:
    found = inbox_messages(run, "server", ["client-1"], ["r01-learn", "r01-respond"])
    assert found == [("client-1", "server", "r01-learn"), ("client-1", "all", "r01-learn")]
    assert inbox_messages(run, "client-2", ["client-1"], ["r01-learn"]) == [("client-1", "all", "r01-learn")]


def test_publishing_again_changes_nothing(run: RunDir) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run.root / "exchange").rglob("*")}
    publish(run, STAGE)
    assert {path: path.stat().st_mtime_ns for path in (run.root / "exchange").rglob("*")} == before
    assert is_published_whole(run, STAGE)


def test_the_schema_of_later_adapters_comes_from_the_first(run: RunDir) -> None:
    assert published_schema(run, STAGE) == {"layer.weight": ("F32", (2, 3))}
    outbox = Outbox(private={"state/memory.json": Payload("state", 1, b"1")})
    silent = Stage(2, "learn", "client-1")
    commit_stage(run, silent, outbox=outbox)
    assert published_schema(run, silent) is None


def test_everything_is_on_disk_before_the_rename_and_the_rename_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, order = make_run(tmp_path), []
    monkeypatch.setattr(os, "fsync", lambda fd: order.append(Path(f"/proc/self/fd/{fd}").readlink()))
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, target: order.append(Path("rename")) or rename(self, target)
    )
    commit_stage(run, STAGE)
    before, after = order[: order.index(Path("rename"))], order[order.index(Path("rename")) + 1 :]
    names = [path.relative_to(run.staging(STAGE, "01-a")).as_posix() for path in before]
    files = [path for path in run.commit(STAGE).rglob("*") if path.is_file()]
    assert {path.relative_to(run.commit(STAGE)).as_posix() for path in files} <= set(names)
    assert names[-2:] == [MANIFEST, "."], "the manifest comes last, then its folder"
    assert after == [run.party("client-1")]


# -- once


def test_the_first_commit_wins_and_the_second_attempts_work_is_thrown_away(run: RunDir) -> None:
    before = (run.commit(STAGE) / MANIFEST).read_bytes()
    assert commit_stage(run, STAGE, attempt="02-b") is False
    assert (run.commit(STAGE) / MANIFEST).read_bytes() == before
    assert list((run.party("client-1") / ".staging").iterdir()) == []


def test_an_attempt_that_is_overtaken_while_it_writes_loses(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(2, "respond", "client-1")

    def overtake(point: str) -> None:
        if point == "commit.manifest-written":
            monkeypatch.undo()
            assert commit_stage(run, stage, attempt="02-fast") is True

    monkeypatch.setattr("lada.exchange.crash_point", overtake)
    assert commit_stage(run, stage, attempt="01-slow") is False
    assert read_manifest(run.commit(stage), stage.party, stage.name).attempt == "02-fast"
    assert list((run.party("client-1") / ".staging").iterdir()) == []


def test_an_attempt_that_commits_twice_is_refused(run: RunDir) -> None:
    detail = refused(lambda: commit_stage(run, STAGE, attempt="01-a"), "once", MANIFEST)
    assert "01-a commits twice" in detail


def test_another_message_under_the_same_name_is_not_overwritten(run: RunDir) -> None:
    path = message_dir(run, "client-1", "server", "r01-learn") / MANIFEST
    path.write_text("{}")
    refused(lambda: publish(run, STAGE), "once", f"server/{MANIFEST}")
    assert path.read_text() == "{}"


@pytest.mark.parametrize(
    "name", ["../x.json", "/tmp/x.json", "a/b.json", ".x.json", "x.pkl", "X.json", "x.json\n", ""]
)
@pytest.mark.parametrize("public", [False, True])
def test_file_names_outside_the_grammar_are_not_written(name: str, public: bool, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    outbox = Outbox()
    if public:
        outbox.send("server", name, Payload("ids", 0, b""))
    else:
        outbox.private[name] = Payload("state", 0, b"")
    refused(lambda: commit_stage(run, STAGE, outbox=outbox), "name", name)
    assert not run.is_committed(STAGE)


@pytest.mark.parametrize("recipient", ["../server", "client-0", "everyone", "", "/tmp", "server\n"])
def test_recipients_outside_the_grammar_are_not_written(recipient: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    outbox = Outbox()
    outbox.send(recipient, "ids.jsonl", Payload("ids", 0, b""))
    refused(lambda: commit_stage(run, STAGE, outbox=outbox), "name", "?")
    assert not run.party("client-1").exists()


# -- commits and messages that are not what they should be

Tamper = Callable[[Path], None]


def edit(name: str, change: Callable[[bytes], bytes]) -> Tamper:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None  # type: ignore[return-value]


def replace(name: str, make: Callable[[Path], object]) -> Tamper:
    def tamper(folder: Path) -> None:
        path = folder / name
        kept = path.with_name("kept")
        path.rename(kept)
        kept.rename(folder.parents[2] / f"kept-{path.name}")
        make(path)

    return tamper


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


FILE_FAULTS: list[tuple[str, str, Callable[[str], Tamper]]] = [
    ("flipped bit", "sha256", lambda name: edit(name, flip)),
    ("cut off", "size", lambda name: edit(name, lambda content: content[:-3])),
    ("grown", "size", lambda name: edit(name, lambda content: content + b"x")),
    ("empty", "size", lambda name: edit(name, lambda content: b"")),
    ("missing", "open", lambda name: replace(name, lambda path: None)),
    ("symlink", "file-type", lambda name: replace(name, lambda path: path.symlink_to("/etc/hostname"))),
    ("dangling symlink", "file-type", lambda name: replace(name, lambda path: path.symlink_to("/none"))),
    ("fifo", "file-type", lambda name: replace(name, os.mkfifo)),
    ("folder", "file-type", lambda name: replace(name, Path.mkdir)),
    ("hard link", "file-type", lambda name: lambda folder: os.link(folder / name, folder.parents[2] / "x")),
]


@pytest.mark.parametrize(
    ("check_name", "fault"), [(c, f) for _, c, f in FILE_FAULTS], ids=[n for n, _, _ in FILE_FAULTS]
)
@pytest.mark.parametrize("name", ["responses.jsonl", MANIFEST])
@pytest.mark.parametrize("where", ["commit", "message"])
def test_a_broken_file_is_refused(
    run: RunDir, check_name: str, fault: Callable[[str], Tamper], name: str, where: str
) -> None:
    folder = message_dir(run, "client-1", "server", "r01-learn")
    prefix = ""
    if where == "commit":
        folder, prefix = run.commit(STAGE) / "public" / "server", "public/server/"
    fault(name)(folder)
    function = (lambda: check(run)) if where == "commit" else (lambda: read(run))
    if name != MANIFEST:
        refused(function, check_name, prefix + name)
        return
    with pytest.raises(ExchangeError) as caught:
        function()
    assert (caught.value.party, caught.value.stage) == ("client-1", "r01-learn")
    assert caught.value.check in (
        "manifest",
        "open",
        "file-type",
        "party",
        "stage",
        "run-hash",
        "sha256",
        "size",
        "listed",
    )


@pytest.mark.parametrize(
    "name",
    [
        "extra.jsonl",
        ".hidden",
        "deep/extra.json",
        "public/manifest.json",
        "public/all/deep/manifest.json",
        "state/manifest.json",
    ],
)
def test_a_file_that_the_manifest_does_not_list_is_refused(run: RunDir, name: str) -> None:
    path = run.commit(STAGE) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    refused(lambda: check(run), "listed", name)


def test_a_linked_manifest_is_not_opened(run: RunDir) -> None:
    path = run.commit(STAGE) / MANIFEST
    path.rename(run.root / "elsewhere.json")
    path.symlink_to(run.root / "elsewhere.json")
    refused(lambda: read_manifest(path.parent, "client-1", "r01-learn"), "open", MANIFEST)


def test_a_truncated_manifest_is_refused(run: RunDir) -> None:
    edit(MANIFEST, lambda content: content[:-20])(run.commit(STAGE))
    refused(lambda: check(run), "manifest", MANIFEST)


@pytest.mark.parametrize(
    ("changes", "check_name"),
    [
        ({"party": "server"}, "party"),
        ({"stage": "r02-learn"}, "stage"),
        ({"run_hash": "0" * 64}, "run-hash"),
        ({"surprise": 1}, "manifest"),
        (
            {
                "files": [
                    {"path": "../../run.yaml", "bytes": 1, "sha256": "0" * 64, "kind": "ids", "items": 0}
                ]
            },
            "manifest",
        ),
        (
            {"files": [{"path": "/etc/passwd", "bytes": 1, "sha256": "0" * 64, "kind": "ids", "items": 0}]},
            "manifest",
        ),
        ({"files": [{"path": "..", "bytes": 1, "sha256": "0" * 64, "kind": "ids", "items": 0}]}, "listed"),
    ],
)
def test_a_manifest_that_claims_something_else_is_refused(
    run: RunDir, changes: dict[str, object], check_name: str
) -> None:
    path = run.commit(STAGE) / MANIFEST
    path.write_text(dump_json(json.loads(path.read_text()) | changes))
    with pytest.raises(ExchangeError) as caught:
        check(run)
    assert caught.value.check == check_name


def test_a_listed_name_with_dots_is_refused_before_it_is_opened(run: RunDir) -> None:
    path = run.commit(STAGE) / MANIFEST
    content = json.loads(path.read_text())
    content["files"].append({"path": "..", "bytes": 1, "sha256": "0" * 64, "kind": "state", "items": 0})
    path.write_text(dump_json(content))
    refused(lambda: check(run), "name", "..")


def test_a_replayed_round_is_refused(run: RunDir) -> None:
    later = Stage(2, "learn", "client-1")
    shutil.copytree(run.commit(STAGE), run.commit(later))
    assert "r01-learn" in refused(lambda: check(run, later), "stage", MANIFEST, later)
    shutil.copytree(
        message_dir(run, "client-1", "server", "r01-learn"),
        message_dir(run, "client-1", "server", "r02-learn"),
    )
    refused(lambda: read(run, stage=later), "stage", MANIFEST, later)


def test_swapped_parties_are_refused(run: RunDir) -> None:
    other = Stage(1, "learn", "server")
    shutil.copytree(run.commit(STAGE), run.commit(other))
    assert "client-1" in refused(lambda: check(run, other), "party", MANIFEST, other)
    shutil.copytree(
        message_dir(run, "client-1", "all", "r01-learn"), message_dir(run, "server", "all", "r01-learn")
    )
    refused(lambda: read(run, "all", other), "party", MANIFEST, other)


def test_a_message_for_another_recipient_is_refused(run: RunDir) -> None:
    shutil.copytree(
        message_dir(run, "client-1", "server", "r01-learn"),
        message_dir(run, "client-1", "client-2", "r01-learn"),
    )
    refused(lambda: read(run, "client-2"), "recipient", MANIFEST)


def test_a_message_of_another_run_is_refused(run: RunDir) -> None:
    run.run_yaml.write_text(run.run_yaml.read_text().replace("rounds: 2", "rounds: 3"))
    refused(lambda: read(run), "run-hash", MANIFEST)
    refused(lambda: check(run), "run-hash", MANIFEST)


def test_a_linked_commit_or_message_folder_is_refused(run: RunDir) -> None:
    for folder, function in (
        (message_dir(run, "client-1", "server", "r01-learn"), lambda: read(run)),
        (run.commit(STAGE), lambda: check(run)),
    ):
        elsewhere = run.root / f"elsewhere-{folder.parent.name}"
        folder.rename(elsewhere)
        folder.symlink_to(elsewhere)
        refused(function, "file-type", MANIFEST)


def test_a_file_above_the_cap_is_refused_unread(run: RunDir) -> None:
    limits = ExchangeOptions(max_file_bytes=10)
    with pytest.raises(ExchangeError, match="at most 10 are legal") as caught:
        check(run, limits=limits)
    assert caught.value.check == "size"


def test_a_line_above_the_cap_is_refused(run: RunDir) -> None:
    refused(lambda: check(run, limits=ExchangeOptions(max_line_bytes=40)), "line-size", "samples.jsonl")


def nan_adapter() -> bytes:
    return adapter(float("nan"))


CONTENT_FAULTS: dict[str, tuple[str, bytes, str]] = {
    "id outside the public set": ("public/server/ids.jsonl", b'{"id":"private-1"}\n' * 3, "public-ids"),
    "cut JSON": ("public/server/responses.jsonl", b'{"id": "q1", "te\n', "schema"),
    "NaN in JSON": ("public/all/rewards.jsonl", b'{"id":"q0","partner":"server","reward":NaN}\n', "schema"),
    "more items than listed": (
        "public/all/rewards.jsonl",
        b'{"id":"q0","partner":"server","reward":1}\n{"id":"q1","partner":"server","reward":1}\n',
        "item-count",
    ),
    "a private question": ("public/server/ids.jsonl", b'{"id":"q1","question":"secret?"}\n', "schema"),
    "a pickle under a safetensors name": (
        "public/all/adapter.safetensors",
        pickle.dumps([1.0] * 9),
        "safetensors",
    ),
    "NaN in a tensor": ("public/all/adapter.safetensors", nan_adapter(), "finite"),
    "another shape": ("public/all/adapter.safetensors", adapter(shape=(3, 2)), "tensor-schema"),
    "another key": (
        "public/all/adapter.safetensors",
        bytes(save({"x": np.ones(2, np.float32)})),
        "tensor-keys",
    ),
    "NaN in metrics": ("metrics.json", b'{"accuracy": NaN}', "schema"),
    "text in metrics": ("metrics.json", b'{"accuracy": "high"}', "schema"),
    "a log of an unknown sample": (
        "samples.jsonl",
        b'{"id":"x1","partner":"server","selected_by":"filter"}\n',
        "public-ids",
    ),
}


@pytest.mark.parametrize("fault", CONTENT_FAULTS)
def test_bad_content_is_refused_even_where_every_digest_fits(run: RunDir, fault: str) -> None:
    name, content, check_name = CONTENT_FAULTS[fault]
    (run.commit(STAGE) / name).write_bytes(content)
    reseal(run.commit(STAGE))
    refused(lambda: check(run), check_name, name)


@pytest.mark.parametrize("kind", ["state", "predictions", "diagnostics", "metrics"])
def test_private_kinds_are_not_published(run: RunDir, kind: str) -> None:
    folder = run.commit(STAGE)
    for path in (folder / MANIFEST, folder / "public" / "all" / MANIFEST):
        content = json.loads(path.read_text())
        for entry in content["files"]:
            if entry["path"].endswith("adapter.safetensors"):
                entry["kind"] = kind
        path.write_text(dump_json(content))
    reseal(folder)
    refused(lambda: check(run), "kind", "public/all/adapter.safetensors")


def test_the_hash_that_stands_for_a_large_delta_is_a_hash_and_nothing_else(tmp_path: Path) -> None:
    for content, legal in (
        (json.dumps({"sha256": "0" * 64}), True),
        ('{"sha256": "the question was"}', False),
    ):
        run = make_run(tmp_path / str(legal))
        outbox = Outbox()
        outbox.send("all", "adapter_hash.json", Payload("adapters", 1, f"{content}\n".encode()))
        commit_stage(run, STAGE, outbox=outbox)
        if legal:
            check(run)
        else:
            refused(lambda run=run: check(run), "schema", "public/all/adapter_hash.json")  # type: ignore[misc]


def test_a_message_inside_a_commit_that_is_addressed_elsewhere_is_refused(run: RunDir) -> None:
    path = run.commit(STAGE) / "public" / "server" / MANIFEST
    path.write_text(dump_json(json.loads(path.read_text()) | {"recipient": "client-2"}))
    refused(lambda: check(run), "recipient", f"public/server/{MANIFEST}")


def test_a_message_inside_a_commit_must_list_what_the_commit_lists(run: RunDir) -> None:
    path = run.commit(STAGE) / MANIFEST
    content = json.loads(path.read_text())
    content["files"] = [entry for entry in content["files"] if not entry["path"].endswith("ids.jsonl")]
    path.write_text(dump_json(content))
    refused(lambda: check(run), "listed", "public/server/ids.jsonl")


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_random_damage_never_raises_anything_but_an_exchange_error(run: RunDir, data: st.DataObject) -> None:
    """Any byte of any file of a message or commit may change, be cut, or be sealed again."""
    names = [
        "manifest.json",
        "samples.jsonl",
        "public/server/manifest.json",
        "public/server/responses.jsonl",
        "public/all/adapter.safetensors",
    ]
    copy = run.commit(STAGE).with_name("copy")
    shutil.copytree(run.commit(STAGE), copy)
    try:
        path = run.commit(STAGE) / data.draw(st.sampled_from(names))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 0]))])
        if path.name != MANIFEST and data.draw(st.booleans()):
            reseal(run.commit(STAGE))
        try:
            check(run)
        except ExchangeError as error:
            assert (error.party, error.stage) == ("client-1", "r01-learn")
            shutil.rmtree(message_dir(run, "client-1", "server", "r01-learn"))
            shutil.copytree(
                run.commit(STAGE) / "public" / "server", message_dir(run, "client-1", "server", "r01-learn")
            )
            try:
                message = read(run)
                message_records(message, "responses.jsonl", Response, limits=LIMITS, legal_ids=IDS)
            except ExchangeError as second:
                assert second.party == "client-1"
    finally:
        shutil.rmtree(run.commit(STAGE))
        copy.rename(run.commit(STAGE))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_what_the_system_said_of_a_failed_publication_is_told_and_nothing_is_left(
    number: int, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copyfile

    def copyfile(source: Path, target: Path, **named: bool) -> object:
        if Path(source).name == MANIFEST:
            raise OSError(number, os.strerror(number), str(target))
        return copied(source, target, **named)

    withdraw(run, STAGE)
    monkeypatch.setattr("shutil.copyfile", copyfile)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        publish(run, STAGE)
    assert caught.value.errno == number, "so that the driver waits, and a stage ends with exit code 12"
    assert [path for path in exchange_root(run).rglob("*") if STAGE.name in path.name] == []
    monkeypatch.undo()
    publish(run, STAGE)
    assert is_published_whole(run, STAGE)


# -- quarantine, restore, sweep


def test_a_refused_commit_goes_to_quarantine_with_its_reason_and_leaves_the_exchange(run: RunDir) -> None:
    where = reject(run, STAGE, ExchangeError("sha256", "flipped", party="client-1", stage="r01-learn"))
    assert not run.is_committed(STAGE)
    assert where.parent == run.rejected("client-1")
    assert "check 'sha256' failed: flipped" in (where / "reason.txt").read_text()
    assert (where / "commit" / MANIFEST).is_file()
    assert inbox_messages(run, "server", ["client-1"], ["r01-learn"]) == []
    commit_and_publish(run, STAGE, "02-b")
    assert reject(run, STAGE, ExchangeError("size", "cut")) != where


def test_a_refused_commit_finds_a_place_whatever_was_removed_from_quarantine(run: RunDir) -> None:
    first = reject(run, STAGE, ExchangeError("size", "cut"))
    commit_and_publish(run, STAGE, "02-b")
    second = reject(run, STAGE, ExchangeError("size", "cut"))
    shutil.rmtree(first)
    commit_and_publish(run, STAGE, "03-c")
    third = reject(run, STAGE, ExchangeError("size", "cut"))
    assert {path.name for path in run.rejected("client-1").iterdir()} == {second.name, third.name}


def test_the_reason_is_not_written_through_a_link_that_the_party_left(run: RunDir) -> None:
    victim = run.root / "victim"
    victim.write_text("untouched")
    (run.commit(STAGE) / "reason.txt").symlink_to(victim)
    with pytest.raises(ExchangeError) as caught:
        check(run)
    reject(run, STAGE, caught.value)
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize(
    "damage",
    [
        edit("responses.jsonl", flip),
        edit(MANIFEST, lambda content: content[:-9]),
        lambda folder: (folder / "responses.jsonl").unlink(),
        lambda folder: (folder / "extra.jsonl").write_text("x"),
        lambda folder: shutil.rmtree(folder),
        replace("responses.jsonl", lambda path: path.symlink_to("/etc/hostname")),
        lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
        lambda folder: (
            folder.rename(folder.parents[2] / "away"),
            folder.symlink_to(folder.parents[2] / "away"),
        ),
    ],
)
def test_a_broken_message_is_seen_and_restored_from_the_commit(run: RunDir, damage: Tamper) -> None:
    folder = message_dir(run, "client-1", "server", "r01-learn")
    before = read(run).contents
    damage(folder)
    assert not is_published_whole(run, STAGE)
    withdraw(run, STAGE)
    publish(run, STAGE)
    assert is_published_whole(run, STAGE)
    assert read(run).contents == before


def test_a_message_that_the_commit_does_not_hold_is_seen(run: RunDir) -> None:
    shutil.copytree(
        message_dir(run, "client-1", "server", "r01-learn"),
        message_dir(run, "client-1", "client-2", "r01-learn"),
    )
    assert not is_published_whole(run, STAGE)


def test_sweeping_removes_leftovers_of_committed_stages_and_no_live_attempt(run: RunDir) -> None:
    staging = run.party("client-1") / ".staging"
    (staging / "r01-learn.02-late").mkdir(parents=True)
    (staging / "r02-learn.01-live").mkdir()
    leftover = message_dir(run, "client-1", "server", "r01-learn").with_name(".r01-learn.77.tmp")
    leftover.mkdir()
    sweep(run, "client-1")
    assert [path.name for path in staging.iterdir()] == ["r02-learn.01-live"]
    assert not leftover.exists()


def test_sweeping_and_withdrawing_do_not_follow_links_that_a_party_planted(run: RunDir) -> None:
    """A party may write in its folders; a link in their place must not lead to somebody else's commits."""
    other = commit_and_publish(run, Stage(1, "learn", "server"))
    mine = run.party("client-1")
    (mine / ".staging").rename(mine / "away")
    (mine / ".staging").symlink_to(other.parent)
    (mine / ".resume").symlink_to(other.parent)
    (other.parent / "r01-learn.precious").mkdir()
    sent = message_dir(run, "client-1", "server", "r01-learn").parent
    shutil.rmtree(sent)
    sent.symlink_to(other.parent)
    sweep(run, "client-1")
    withdraw(run, STAGE)
    assert other.is_dir() and (other.parent / "r01-learn.precious").is_dir()


def test_committed_stages_are_those_with_a_manifest(run: RunDir) -> None:
    (run.party("client-1") / "r01-respond").mkdir()
    rogue = run.party("client-1") / "rogue"
    rogue.mkdir()
    (rogue / MANIFEST).write_text("{}")
    commit_stage(run, Stage(0, "prepare", "client-1"))
    assert [stage.name for stage in committed_stages(run, "client-1")] == ["r00-prepare", "r01-learn"]
    assert committed_stages(run, "client-9") == []


def test_a_disk_that_fills_up_leaves_no_commit_and_the_next_attempt_succeeds(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse a write half-way, as a full disk or a quota does."""
    run = make_run(tmp_path)
    outbox = full_outbox(STAGE)
    outbox.private["state/large.json"] = Payload("state", 1, b"x" * 100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            commit(run, STAGE, outbox, attempt="01-a", run_id="run", inputs={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not run.is_committed(STAGE)
    assert commit(run, STAGE, outbox, attempt="02-b", run_id="run", inputs={}) is True
    check_commit(run, STAGE, limits=LIMITS, public_ids=IDS)
    sweep(run, "client-1")
    assert list((run.party("client-1") / ".staging").iterdir()) == []


def test_a_party_s_own_model_may_be_larger_than_any_message_and_is_verified_all_the_same(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path)
    outbox = full_outbox(STAGE)
    outbox.private["state/large.json"] = Payload("state", 1, b"x" * 100_000)
    commit(run, STAGE, outbox, attempt="01-a", run_id="run", inputs={})
    limits = LIMITS.model_copy(update={"max_file_bytes": 50_000})
    check_commit(run, STAGE, limits=limits, public_ids=IDS)
    (run.commit(STAGE) / "state" / "large.json").write_bytes(b"x" * 99_999 + b"y")
    with pytest.raises(ExchangeError, match="not what the manifest says") as caught:
        check_commit(run, STAGE, limits=limits, public_ids=IDS)
    assert caught.value.check == "sha256"


def test_what_a_stage_read_is_recorded(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    commit(run, STAGE, Outbox(), attempt="01-a", run_id="run", inputs={"server/all/r00-prepare": "0" * 64})
    assert read_manifest(run.commit(STAGE), "client-1", "r01-learn").inputs == {
        "server/all/r00-prepare": "0" * 64
    }
