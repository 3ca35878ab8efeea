"""One driver per run, with real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lada.errors import BusyError
from lada.lease import lease

ROOT = Path(__file__).parents[1]
HOLD = """
import sys
from pathlib import Path
from lada.lease import lease
with lease(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture()
def holder(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Another process that holds the lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "driver.lease")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_driver_is_refused_and_told_who_the_first_is(holder, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "driver.lease"
    before = path.read_bytes()
    with (
        pytest.raises(BusyError, match=rf"process {holder.pid} on {re.escape(socket.gethostname())}"),
        lease(path),
    ):
        pytest.fail("two drivers")
    assert path.read_bytes() == before


def test_a_killed_owners_lease_is_taken_over_at_once(holder, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "driver.lease"
    os.kill(holder.pid, signal.SIGKILL)
    # Not reaped yet: it is a zombie, which must count as dead too.
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert path.is_file(), "a killed owner leaves its lease"
    with lease(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_a_lease_that_was_given_back_is_free(holder, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    holder.communicate("")
    assert holder.returncode == 0
    with lease(tmp_path / "driver.lease"):
        pass
    with lease(tmp_path / "driver.lease"):
        pass


def test_a_reused_process_number_is_not_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "driver.lease"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "start": "another boot/1"}))
    with lease(path):
        assert json.loads(path.read_text())["start"] != "another boot/1"


def test_an_owner_on_another_host_is_never_evicted(tmp_path: Path) -> None:
    path = tmp_path / "driver.lease"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "x"}))
    with (
        pytest.raises(BusyError, match="process 1 on elsewhere drives this run; if it is gone for good"),
        lease(path),
    ):
        pytest.fail("two drivers")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_an_unreadable_lease_is_not_taken_over(content: str, tmp_path: Path) -> None:
    path = tmp_path / "driver.lease"
    path.write_text(content)
    with pytest.raises(BusyError, match="names no owner"), lease(path):
        pytest.fail("two drivers")


def test_an_error_inside_gives_the_lease_back(tmp_path: Path) -> None:
    path = tmp_path / "driver.lease"
    with pytest.raises(RuntimeError), lease(path):
        raise RuntimeError
    assert not path.exists()


def test_of_many_takers_of_a_dead_lease_one_at_a_time_gets_in(tmp_path: Path) -> None:
    """Each of these processes leaves a mark while inside, and fails where it finds another's."""
    path = tmp_path / "driver.lease"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "start": "gone"}))
    taker = """
import os, sys
from pathlib import Path
from lada.errors import BusyError
from lada.lease import lease
path, marks = Path(sys.argv[1]), Path(sys.argv[2])
for attempt in range(40):
    try:
        with lease(path):
            mark = os.open(marks / "inside", os.O_CREAT | os.O_EXCL)
            os.close(mark)
            (marks / "inside").unlink()
    except BusyError:
        pass
"""
    takers = [
        subprocess.Popen([sys.executable, "-c", taker, str(path), str(tmp_path)], cwd=ROOT) for _ in range(3)
    ]
    assert [process.wait() for process in takers] == [0, 0, 0]


def test_an_owner_elsewhere_that_slurm_knows_to_be_over_is_evicted(tmp_path: Path) -> None:
    path = tmp_path / "driver.lease"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "x", "job": "77"}))
    with pytest.raises(BusyError, match=r"process 1 on elsewhere \(job 77\)"), lease(path):
        pass
    with lease(path, gone=lambda owner: owner["job"] == "77"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_a_driver_that_lost_its_lease_notices(tmp_path: Path) -> None:
    path = tmp_path / "driver.lease"
    with lease(path) as check:
        check()
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "x"}))
        with pytest.raises(BusyError, match="lost the run"):
            check()
    assert path.exists(), "what another driver holds is not removed"
