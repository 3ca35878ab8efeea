"""`python -m lada step`: its log lines, its exit codes, its refusals, smaller micro-batches."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from jobs.launch import Local
from lada.__main__ import main
from lada.driver import Driver
from lada.errors import NOT_RETRIED, ChangedError, DeviceMemoryError, HostMemoryError, NoSpaceError, Paused
from lada.layers import read_run
from lada.policy import Change
from lada.progress import SECONDS_BETWEEN_LINES, StageReporter
from lada.rundir import RunDir, Stage
from lada.stage import InProcess, resource_errors, with_smaller_batches
from tests.federation import Quiet, make
from tests.smallest_models import SETTINGS

pytestmark = pytest.mark.usefixtures("smallest_lab", "no_fsync")

ROOT = Path(__file__).parents[1]
STAGE = Stage(0, "prepare", "client-1")


@pytest.fixture()
def run(tmp_path: Path) -> RunDir:
    return make(tmp_path, *SETTINGS, "rounds=1", small=False)


def arguments(run: RunDir, *more: str) -> list[str]:
    return ["step", "--run", str(run.root), "--party", STAGE.party, "--stage", STAGE.name, *more]


# -- log lines


@pytest.mark.slow
def test_it_logs_to_stdout_alone(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(run, "--attempt", "01-x")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d client-1/r00-prepare", line) for line in lines)
    assert lines[0].endswith("client-1/r00-prepare attempt 01-x begins")
    assert lines[-1].endswith("client-1/r00-prepare committed")
    training = r"r00-prepare: local training 1/1 loss \d\.\d+ elapsed \d+\.\d s left 0\.0 s$"
    assert sum(re.search(training, line) is not None for line in lines) == 1
    assert any(re.search(r"test after local training 4/4 accuracy \d", line) for line in lines)
    assert not (run.root / "logs").exists()
    assert main(arguments(run, "--attempt", "02-y")) == 0
    assert "was committed by another attempt before" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_a_job_has_one_log_with_each_line_once(run: RunDir) -> None:
    launcher = Local(run)
    try:
        Driver(run, launcher).drive(rounds=0)
    finally:
        launcher.stop()
    (log,) = (run.root / "logs" / "client-1").iterdir()
    lines = log.read_text().splitlines()
    assert sum("begins" in line for line in lines) == 1
    assert sum("local training 1/1" in line for line in lines) == 1
    assert sum(line.endswith("committed") for line in lines) == 1


def test_the_time_left_of_a_resumed_phase_does_not_count_what_was_done_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds: Iterator[float] = iter([0.0, 0.0, 10.0 * SECONDS_BETWEEN_LINES])
    monkeypatch.setattr("lada.progress.time.monotonic", lambda: next(seconds))
    lines: list[str] = []
    tick = StageReporter("client-1/r01-learn", lines.append).phase("distillation", 100)
    tick(91, "loss 0.5")
    tick(95, "loss 0.4")
    # 5 of 100 took 50 s, so the last 5 will too.
    assert lines == ["client-1/r01-learn: distillation 95/100 loss 0.4 elapsed 50.0 s left 50.0 s"]


# -- what runs out


def host_memory() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def fail(error: Exception) -> Callable[[], None]:
    def failing() -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    ("work", "kind", "code"),
    [
        (fail(torch.OutOfMemoryError("CUDA out of memory. Tried\nmore lines")), DeviceMemoryError, 10),
        (fail(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when")), DeviceMemoryError, 10),
        (fail(MemoryError()), HostMemoryError, 11),
        (host_memory, HostMemoryError, 11),
        (lambda: bytearray(2**62), HostMemoryError, 11),
        (fail(OSError(errno.ENOSPC, "No space left on device", "f")), NoSpaceError, 12),
        (fail(OSError(errno.EDQUOT, "Disk quota exceeded", "f")), NoSpaceError, 12),
        (fail(OSError(errno.EIO, "Input/output error")), OSError, None),
        (fail(RuntimeError("shapes do not fit")), RuntimeError, None),
    ],
)
def test_what_runs_out_has_an_error_and_a_code_of_its_own(
    work: Callable[[], object], kind: type[Exception], code: int | None
) -> None:
    with pytest.raises(kind) as caught, resource_errors("server/r01-learn"):
        work()
    assert type(caught.value) is kind
    if code is not None:
        assert getattr(caught.value, "exit_code") == code  # noqa: B009
        assert code not in NOT_RETRIED
        assert "\n" not in str(caught.value) and str(caught.value).startswith("server/r01-learn: ")


def test_a_pause_may_be_tried_again() -> None:
    assert Paused.exit_code == 85 and 85 not in NOT_RETRIED


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_commit_on_a_full_disk_ends_with_12_and_gives_the_room_back(
    number: int, run: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:1])
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("lada.exchange.write_synced", full)
        assert main(arguments(run)) == NoSpaceError.exit_code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"NoSpaceError: client-1/r00-prepare: {os.strerror(number)}")
    assert list((run.party("client-1") / ".staging").iterdir()) == []
    assert main(arguments(run)) == 0


@pytest.mark.slow
def test_a_log_on_a_full_disk_ends_with_12_too(run: RunDir) -> None:
    command = [sys.executable, "-m", "lada", *arguments(run)]
    with Path("/dev/full").open("w") as full:
        both = subprocess.run(command, cwd=ROOT, stdout=full, stderr=full, check=False)
        one = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert both.returncode == one.returncode == 12
    assert one.stderr.startswith("NoSpaceError: client-1/r00-prepare: No space left on device")


@pytest.mark.slow
def test_in_one_process_the_codes_are_the_same(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = InProcess(run, lambda stage, attempt: Quiet())
    with monkeypatch.context() as patch:
        patch.setattr(
            "lada.stage.commit", lambda *_, **__: fail(torch.OutOfMemoryError("CUDA out of memory"))()
        )
        launcher.start(STAGE, "01-x", Change())
    launcher.start(STAGE, "02-y", Change(micro_batch_divisor=2))
    first, second = launcher.poll()
    assert (first.exit_code, second.exit_code) == (10, 0)
    assert first.detail == "client-1/r00-prepare: the GPU's memory ran out: CUDA out of memory"
    text = run.log("client-1", STAGE, "02-y").read_text()
    assert text.splitlines()[0].endswith("attempt 02-y begins, micro-batches divided by 2")


# -- smaller micro-batches


def test_a_divisor_makes_micro_batches_smaller_and_nothing_else(run: RunDir) -> None:
    config = read_run(run.root)
    smaller = with_smaller_batches(config, 4)
    for kind in ("local", "client", "server"):
        before, after = getattr(config.training, kind), getattr(smaller.training, kind)
        assert after.micro_tokens == before.micro_tokens // 4
        assert after.model_copy(update={"micro_tokens": before.micro_tokens}) == before
    assert smaller.generation.batch_size == config.generation.batch_size // 4
    assert with_smaller_batches(config, 1) == config
    assert with_smaller_batches(config, 2**40).generation.batch_size == 1


@pytest.mark.slow
def test_an_attempt_with_smaller_micro_batches_makes_the_same_steps(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lada import training

    calls: list[int] = []
    original = training._micro_batch

    def spy(model: object, members: list[object], *rest: object) -> object:
        calls.append(len(members))
        return original(model, members, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_micro_batch", spy)
    other = make(tmp_path / "other", *SETTINGS, "rounds=1", "training.local.micro_tokens=1024", small=False)
    counts = []
    for divisor in ("1", "4"):
        assert main(arguments(other, "--attempt", f"0{divisor}-x", "--micro-batch-divisor", divisor)) == 0
        counts.append(list(calls))
        calls.clear()
        for folder in (other.commit(STAGE), other.root / "exchange" / "client-1"):
            shutil.rmtree(folder)
    assert sum(counts[0]) == sum(counts[1]) == 8, "every example once"
    assert len(counts[1]) > len(counts[0])
    assert "attempt 04-x begins, micro-batches divided by 4" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0", "3", "-2", "two", "²"])
def test_a_divisor_that_is_no_power_of_two_is_refused(
    text: str, run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments(run, f"--micro-batch-divisor={text}"))
    assert caught.value.code == 2
    assert f"'{text}' is not 1, 2, 4, 8" in capsys.readouterr().err


# -- other code


def test_other_code_than_the_run_s_is_refused_unless_it_was_amended(
    run: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lada.provenance.code_hash", lambda: "f" * 64)
    before = run.provenance_json.read_text()
    assert main(arguments(run)) == ChangedError.exit_code
    assert re.search(r"made with code \w{8}, this is code ffffffff.*AMEND=1", capsys.readouterr().err)
    assert not run.is_committed(STAGE)
    amended = {**json.loads(before), "code": "f" * 64, "amended_from": [json.loads(before)]}
    run.provenance_json.write_text(json.dumps(amended))
    assert main(arguments(run)) == 0
