"""What a job runs on the host: one stage as a command, its exit code and last words left in a file.

The driver reads that file and the run's commits. It never asks submitit for a result, which would unpickle
what the job wrote.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

TAIL = 2000


def run_command(command: list[str], log: str, exit_file: str) -> int:
    """Run a stage's command; returns its exit code.

    Args:
        command: argument vector.
        log: file that its output is appended to.
        exit_file: JSON with ``exit_code`` and ``detail``, written whole or not at all.
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with Path(log).open("ab") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    write_exit(Path(exit_file), code, Path(log))
    return code


def write_exit(exit_file: Path, code: int, log: Path) -> None:
    """Leave an exit code and the end of a log where the driver looks."""
    text = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
    lines = [line for line in text.splitlines() if line.strip()]
    temporary = exit_file.with_suffix(f".{os.getpid()}.tmp")
    content = {"exit_code": code, "detail": lines[-1] if lines and code else ""}
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(exit_file)


def read_exit(exit_file: Path) -> tuple[int, str] | None:
    """What `write_exit` left, or None while there is nothing."""
    try:
        content = json.loads(exit_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return int(content["exit_code"]), str(content["detail"])
