"""What a person does on the development cluster, as its ordinary user, and what the tests watch meanwhile."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jobs.slurm import job_name
from lada.ledger import Ledger
from lada.plan import read_plan
from lada.rundir import RunDir, Stage

ROOT = Path(__file__).parents[2]
SESSION = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}")[:8]
PATIENCE = 900.0
"""Seconds that a run of a few small stages may take on a busy machine before a test gives up."""
SMALL = ("--scenario", "one-client", "--size", "tiny", "--set", "rounds=1")
"""Three groups of two stages: the least that has every kind of stage."""
SMALL_STAGES = [Stage(0, "prepare", "server"), Stage(1, "respond", "server"), Stage(1, "learn", "server")]


def wait_for(condition: Callable[[], Any], what: str, *, patience: float = PATIENCE) -> Any:
    """The first true value of ``condition``; fails with ``what`` when there is none in time."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.2)
    return found


@dataclass
class Suite:
    """A copy of this checkout that the cluster's user works in.

    Attributes:
        environment: of that user.
    """

    folder: Path
    user: str
    environment: dict[str, str]
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    def command(
        self, *arguments: str, check: bool = True, patience: float = PATIENCE, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there as that user."""
        become = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--init-groups"]
        done = subprocess.run(
            [*(become if os.geteuid() == 0 else []), *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=patience,
        )
        if check:
            said = f"{shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"
            assert done.returncode == 0, f"exit code {done.returncode}: {said}"
        return done

    def jobs(
        self, *arguments: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """`python -m jobs …` there."""
        return self.command(".venv/bin/python", "-m", "jobs", *arguments, check=check, **environment)

    def cluster(self, **changes: Any) -> str:
        """A cluster file like devcluster.yaml with some keys changed; one level of nesting is merged."""
        content = yaml.safe_load((self.folder / "configs" / "clusters" / "devcluster.yaml").read_text())
        for key, value in changes.items():
            content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
        path = self.folder / "build" / "test-clusters" / f"dev-{os.getpid()}-{next(self._numbers)}.yaml"
        self.command("mkdir", "-p", str(path.parent))
        path.write_text(yaml.safe_dump(content))
        path.chmod(0o644)
        return str(path)

    def submit(
        self, name: str, *options: str, cluster: str = "devcluster", check: bool = True, **environment: str
    ) -> Run:
        """Submit a run (by default the smallest) into a runs folder of this name."""
        runs = self.runs(name)
        done = self.jobs(
            "submit",
            *(options or SMALL),
            *("--runs", str(runs), "--cluster", cluster),
            check=check,
            **environment,
        )
        return Run(self, self.printed(done))

    def runs(self, name: str) -> Path:
        """A folder of runs for one test of this very session, whatever an earlier one left."""
        return self.folder / "runs" / SESSION / name

    @staticmethod
    def printed(done: subprocess.CompletedProcess[str]) -> RunDir:
        """The run folder that a command printed."""
        lines = [line for line in done.stdout.splitlines() if line.startswith("Run folder: ")]
        assert lines, f"no run folder in: {done.stdout}\n{done.stderr}"
        return RunDir(Path(lines[0].removeprefix("Run folder: ")))

    def in_process(self, runs: Path, *options: str) -> bytes:
        """metrics.csv of the same run made by `lada run` in one process of the test's own Python."""
        command = [sys.executable, "-m", "lada", "run", *(options or SMALL), "--runs", str(runs)]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return self.printed(done).metrics_csv.read_bytes()


@dataclass
class Run:
    """A run on the cluster, as a person and as the tests see it."""

    suite: Suite
    folder: RunDir

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Events of the ledger."""
        found = Ledger(self.folder.ledger_jsonl).read()
        return [event for event in found if kind in (None, event.get("event"))]

    def failures(self, stage: Stage | None = None) -> list[str]:
        """Causes of all failed attempts, or of a stage's."""
        events = self.events("failed")
        return [event["cause"] for event in events if stage is None or event["stage"] == str(stage)]

    def is_done(self) -> bool:
        """Whether every stage is committed and the driver has said so."""
        plan = read_plan(self.folder)
        if next(plan.pending(self.folder.is_committed), None) is not None:
            return False
        return bool(self.events()) and self.events()[-1]["event"] == "driver-ended"

    def wait(self, *, patience: float = PATIENCE) -> Run:
        """Until the run is done; fails at once when it stopped."""

        def over() -> bool:
            events = self.events()
            last = events[-1]["event"] if events else ""
            assert last != "stopped", events[-1]
            return self.is_done()

        wait_for(over, f"the end of {self.folder.root}\n{self.tail()}", patience=patience)
        return self

    def wait_for(self, condition: Callable[[], Any], what: str, *, patience: float = PATIENCE) -> Any:
        """Until something holds; fails with what the driver said."""
        return wait_for(condition, f"{what} of {self.folder.root}", patience=patience)

    def tail(self) -> str:
        """The end of what the driver said."""
        return self.driver_log()[-3000:]

    def driver_log(self) -> str:
        """All that the driver's jobs said."""
        logs = sorted((self.folder.root / "logs" / "driver").glob("*.log"))
        return "\n".join(log.read_text(errors="replace") for log in logs)

    def resume(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """`make resume` for this run."""
        return self.suite.jobs("resume", "--run", str(self.folder.root), check=False, **environment)

    def cancel(self) -> None:
        """`make cancel` for this run, and until its jobs are gone."""
        self.suite.jobs("cancel", "--run", str(self.folder.root))
        self.wait_for(lambda: not self.queue(), "an empty queue")

    def status(self) -> dict[str, Any]:
        """`make status JSON=1`."""
        done = self.suite.jobs("status", "--run", str(self.folder.root), "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def queue(self) -> dict[str, str]:
        """Name -> id of this run's jobs in the queue."""
        done = self.suite.command("squeue", "--noheader", "--format=%j %i %T", check=False)
        lines = [line.split() for line in done.stdout.splitlines() if len(line.split()) == 3]
        mine = f"{self.folder.root.name}."
        return {
            name: number for name, number, state in lines if name.startswith(mine) and state != "COMPLETING"
        }

    def job(self, stage: Stage | None) -> str:
        """The id of a stage's running job (None: the driver's), once it runs."""
        name = job_name(self.folder, stage)

        def running() -> str | None:
            done = self.suite.command(
                "squeue", "--noheader", f"--name={name}", "--states=RUNNING", "--format=%i", check=False
            )
            return next(iter(done.stdout.split()), None)

        found: str = self.wait_for(running, f"job {name}")
        return found

    def processes(self, stage: Stage) -> list[int]:
        """Processes that compute a stage, on this host: the interpreter inside the container, no wrapper."""
        wanted = ["--run", str(self.folder.root), "--party", stage.party, "--stage", stage.name]
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_text().split("\0")
            except OSError:
                continue
            if words[1:4] == ["-m", "lada", "step"] and words[4:10] == wanted:
                found.append(int(path.parent.name))
        return found

    def wait_for_process(self, stage: Stage) -> int:
        """The process of a stage once its log says that it began."""
        party = self.folder.root / "logs" / stage.party

        def at_work() -> int | None:
            begun = any(log.stat().st_size for log in party.glob(f"{stage.name}.*.log"))
            return next(iter(self.processes(stage)), None) if begun else None

        found: int = self.wait_for(at_work, f"a process of {stage}")
        return found

    def kill_driver(self) -> None:
        """kill -9 of the driver's process, wherever it is."""
        owner = json.loads(self.folder.lease.read_text())
        os.kill(owner["pid"], 9)
