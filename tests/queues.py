"""Jobs as squeue would list them for a run, for views that are told from the queue."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cluster import Cluster, load_cluster, write_cluster
from jobs.slurm import DRIVER, Job, comment, job_name
from lada.rundir import RunDir, Stage


def devcluster(tmp_path: Path) -> Cluster:
    """The development cluster's file, with an image that is not there."""
    return load_cluster("devcluster").model_copy(update={"image": str(tmp_path / "none.sif")})


def on_cluster(run: RunDir, tmp_path: Path) -> RunDir:
    """A run as `make submit` leaves it."""
    write_cluster(run, devcluster(tmp_path))
    return run


def job(
    run: RunDir, number: int, stage: Stage | None, state: str = "RUNNING", reason: str = "None", **more: str
) -> Job:
    """A job of a stage, or of the driver."""
    pending = state == "PENDING"
    return Job(
        id=str(number),
        name=job_name(run, stage),
        state=state,
        reason=reason,
        comment=comment(run, DRIVER if stage is None else more.get("attempt", "01-a")),
        nodes="" if pending else more.get("nodes", "n1"),
        elapsed="0:00" if pending else more.get("elapsed", "1:30"),
        limit="1:00:00",
    )


def queue(patch: pytest.MonkeyPatch, jobs: list[Job] | None) -> None:
    """What squeue answers from now on; None: nothing."""
    patch.setattr("jobs.snapshot.my_jobs", lambda: jobs)
