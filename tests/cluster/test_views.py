"""What a person sees of a run on a real cluster: status, watch, logs, cost, plan, gc and doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lada.rundir import Stage
from tests.cluster.harness import SMALL, Run, Suite, wait_for

PREPARE = Stage(0, "prepare", "client-1")


@pytest.fixture(scope="module")
def run(suite: Suite) -> Run:
    """A run whose client's first stage was held, released, and put back into the queue once."""
    run = suite.submit("views")
    job = run.job(PREPARE)
    run.wait_for_process(PREPARE)
    suite.command("scontrol", "requeue", job)
    suite.command("scontrol", "hold", job)
    shot = wait_for(lambda: stuck(run), "a stage that is held")
    assert shot["state"] == "running", shot
    view = stage(shot, PREPARE)
    assert (view["state"], view["job"], view["reason"]) == ("queued", job, "JobHeldUser")
    assert f"scontrol release {job}" in shot["hint"]
    text = suite.jobs("status", "--run", str(run.folder.root)).stdout
    assert "you hold it" in text and max(map(len, text.splitlines())) <= 80
    suite.command("scontrol", "release", job)
    return run


def stage(shot: dict[str, Any], wanted: Stage) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in shot["stages"] if one["stage"] == str(wanted))
    return found


def stuck(run: Run) -> dict[str, Any] | None:
    shot = run.status()
    return shot if stage(shot, PREPARE)["stuck"] else None


def views(run: Run, *arguments: str, code: int = 0) -> str:
    done = run.suite.jobs(*arguments, "--run", str(run.folder.root), check=False)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_watch_follows_a_run_to_its_end(run: Run) -> None:
    said = views(run, "watch", "--every", "1")
    assert said.rstrip().splitlines()[0].endswith((": running", ": done"))
    assert f"{run.folder.root.name}: done" in said
    shot = run.status()
    assert (shot["state"], shot["driver"]["state"], shot["last_error"]) == ("done", "none", None)
    # The restart counts as a try, and what it wrote has a log of its own.
    assert stage(shot, PREPARE)["attempts"] >= 2


def test_a_driver_at_work_keeps_gc_away(suite: Suite) -> None:
    run = suite.submit("views-gc")
    run.job(None)
    assert views(run, "gc", "--yes", code=9) == ""
    run.cancel()
    shot = run.status()
    assert shot["state"] == "paused" and "make resume" in shot["hint"]
    assert views(run, "watch", code=1)
    views(run, "gc", "--yes")
    run.resume()
    run.wait()
    assert run.status()["state"] == "done"


def test_cost_comes_from_the_accounts_and_agrees_with_the_ledger(run: Run) -> None:
    run.wait()
    accounts = run.suite.command("sacct", "-n", "-X", "-S", "now", check=False)
    found = json.loads(views(run, "cost", "--json"))
    if accounts.returncode:
        assert "the ledger" in found["source"]
        return
    assert "sacct" in found["source"]
    rows = {(row["party"], row["round"]): row for row in found["rows"]}
    # One GPU and one core each, and the time before the requeue was for nothing.
    first = rows["client-1", 0]
    assert first["attempts"] == 2 and first["gpu_wasted"] > 0 and first["queued"] > 0
    assert first["gpu_useful"] == pytest.approx(first["cpu_useful"])
    assert rows["server", 1]["gpu_useful"] == pytest.approx(2 * rows["server", 1]["cpu_useful"])
    own = sum(event["seconds"] for event in run.events("committed") if event["stage"].startswith("server"))
    slurm = sum(row["cpu_useful"] for row in found["rows"] if row["party"] == "server") * 3600
    assert slurm == pytest.approx(own, rel=0.5), "Slurm counts whole seconds, from allocation to release"


def test_logs_of_every_restart_and_of_the_driver(run: Run) -> None:
    run.wait()
    said = views(run, "logs", "--party", "client-1", "--round", "0")
    assert said.count("\n-- ") == 2 and said.rstrip().endswith("committed")
    assert "submitted as job" in views(run, "logs", "--party", "driver")


def test_plan_shows_what_sbatch_takes(suite: Suite, tmp_path: Path) -> None:
    """A dry run of a run that is not there, in the image; Slurm itself would take each of its scripts."""
    runs = suite.folder / "runs" / "views-plan"
    done = suite.jobs("plan", *SMALL, "--cluster", "devcluster", "--runs", str(runs), "--full", "--json")
    found = json.loads(done.stdout)
    assert not runs.exists() and found["totals"]["stages"] == 6
    for number, one in enumerate(found["stages"]):
        script = suite.folder / "build" / f"views-plan-{number}.sh"
        suite.command("mkdir", "-p", str(script.parent))
        script.write_text(one["sbatch"])
        script.chmod(0o644)
        suite.command("sbatch", "--test-only", str(script))
        script.unlink()


def test_doctor_finds_a_good_cluster_good(suite: Suite) -> None:
    done = suite.jobs("doctor", "--cluster", "devcluster", "--runs", "runs", "--wait", "600", check=False)
    assert done.returncode == 0 and " 0 failed" in done.stdout, done.stdout
    for words in (
        "jobs can submit jobs",
        "the image runs on n",
        "without a network",
        "ClusterName devcluster",
    ):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slurm_cluster": "other"}, "fail Slurm"),
        ({"partition": "none"}, "there is no 'none'"),
        ({"binds": ["/nowhere:/data"]}, "no /nowhere"),
        ({"image": "build/none.sif"}, "make image"),
        ({"resources": [{"up_to": 80, "gpus": 64}]}, "fail models to 80B"),
        ({"setup": ["PATH=/nowhere"]}, "fail container there"),
    ],
)
def test_doctor_names_what_is_broken(suite: Suite, changes: dict[str, Any], said: str) -> None:
    wait = "600" if "setup" in changes else "0"
    done = suite.jobs(
        *("doctor", "--cluster", suite.cluster(**changes), "--runs", "runs", "--wait", wait), check=False
    )
    assert done.returncode == 14 and said in done.stdout, done.stdout
