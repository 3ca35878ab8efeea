"""Runs `python -m lada …` many times without importing torch each time.

A helper process imports everything once, with one thread, and forks a child for every command: the child is a
process of its own, with its own environment, that can be killed like any other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code (negative: killed by that signal), seconds, all that it printed."""

    code: int
    seconds: float
    output: str


class Warm:
    """The test's side of the helper process."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._output = folder / "output.txt"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            cwd=ROOT,
            env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, arguments: Sequence[str], *, crash_at: str | None = None, kill_after: float | None = None
    ) -> Outcome:
        """Run one command to its end, or kill it ``kill_after`` seconds after its start."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._output.write_text("")
        job = {"arguments": list(arguments), "crash_at": crash_at, "kill_after": kill_after}
        self._process.stdin.write(json.dumps({**job, "output": str(self._output)}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Outcome(answer["code"], answer["seconds"], self._output.read_text(errors="replace"))

    def close(self) -> None:
        """End the helper process."""
        self._process.communicate("")


def serve() -> None:
    """The helper's side: one JSON line per command on stdin, one per outcome on stdout."""
    import torch

    torch.set_num_threads(1)
    from lada.__main__ import main
    from lada.method import describe_methods
    from lada.models import build_network
    from tests.smallest_models import _config

    describe_methods()
    for architecture in ("qwen3", "llama"):
        build_network(_config(architecture, 80), seed=0)
    for line in sys.stdin:
        job = json.loads(line)
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(job)
            code = main(job["arguments"])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _kill_later(child, job["kill_after"])
        _, status = os.waitpid(child, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begun}
        print(json.dumps(answer), flush=True)  # noqa: T201  # the answer to the test


def _become(job: Mapping[str, str | None]) -> None:
    if job["crash_at"] is not None:
        os.environ["LADA_CRASH_AT"] = job["crash_at"]
    output = os.open(str(job["output"]), os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _kill_later(child: int, seconds: float | None) -> None:
    def kill(number: int, frame: FrameType | None) -> None:
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    if seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    serve()
