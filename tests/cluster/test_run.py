"""Whole runs on a real cluster: the same results as in one process, whoever advances the rounds."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from lada.plan import read_plan
from lada.records import Item, read_jsonl
from lada.rundir import RunDir, Stage, write_atomic
from tests.cluster.conftest import open_suite
from tests.cluster.harness import ROOT, SESSION, SMALL, Run, Suite, wait_for

TINY = ("--scenario", "1", "--size", "tiny")


@pytest.mark.ci
def test_scenario_1_from_make_submit_to_csv_is_the_in_process_run_byte_for_byte(
    suite: Suite, tmp_path: Path
) -> None:
    """As a newcomer types it, from a checkout that only root can read."""
    own = suite.folder.with_name("test-suite-make")
    devcluster = suite.environment["DEVCLUSTER"]
    environment = {**os.environ, "DEVSUITE": str(own), "DEVCLUSTER": devcluster, "MAKEFLAGS": ""}
    runs = f"runs/{SESSION}/scenario-1"
    command = ["make", "submit", "SCENARIO=1", "CLUSTER=devcluster", "SIZE=tiny", f"RUNS={runs}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    suite = open_suite(Path(devcluster), own.name)
    run = Run(suite, Suite.printed(done))
    live = suite.jobs("submit", *TINY, "--runs", runs, "--cluster", "devcluster")
    assert "already" in live.stdout, "submitting twice starts nothing twice"
    seen = run.status()
    assert (seen["run_id"], seen["run_dir"]) == (run.folder.root.name, str(run.folder.root))
    assert seen["state"] in ("pending", "running")
    run.wait()
    assert run.folder.metrics_csv.read_bytes() == suite.in_process(tmp_path, *TINY)
    assert run.failures() == []
    assert run.status()["state"] == "done"
    submitted = run.events("submitted")
    assert len(submitted) == len({event["job"] for event in submitted}) == 20
    again = suite.jobs("submit", *TINY, "--runs", runs, "--cluster", "devcluster")
    assert "Nothing is left to do" in again.stdout
    stages_ran_side_by_side(run)


def stages_ran_side_by_side(run: Run) -> None:
    """Stages of one group were all submitted before the first of them was committed."""
    for group in read_plan(run.folder).groups():
        names = {str(stage) for stage in group}
        kinds = [event["event"] for event in run.events() if event.get("stage") in names]
        assert kinds.index("committed") > max(
            place for place, kind in enumerate(kinds) if kind == "submitted"
        )


@pytest.mark.ci
def test_two_runs_side_by_side_do_not_disturb_each_other(
    suite: Suite, expected: bytes, tmp_path: Path
) -> None:
    """The same run in two folders, whose jobs even have the same names, and another seed."""
    first, second = suite.submit("beside-1"), suite.submit("beside-2")
    other = suite.submit("beside-3", *SMALL, "--seed", "5")
    for run in (first, second, other):
        run.wait()
        assert run.failures() == []
    assert first.folder.metrics_csv.read_bytes() == expected
    assert second.folder.metrics_csv.read_bytes() == expected
    assert other.folder.metrics_csv.read_bytes() == suite.in_process(tmp_path, *SMALL, "--seed", "5")


def sbatch_round(suite: Suite, **environment: str) -> str:
    done = suite.command("sbatch", "--parsable", "slurm/round.sbatch", **environment)
    return done.stdout.strip()


def wait_for_job(suite: Suite, job: str) -> str:
    """A job's state once it is over."""

    def over() -> str | None:
        done = suite.command("scontrol", "show", "job", "--oneliner", job, check=False)
        fields = dict(part.partition("=")[::2] for part in done.stdout.split())
        state = fields.get("JobState", "GONE")
        return state if state not in ("PENDING", "RUNNING", "COMPLETING") else None

    return str(wait_for(over, f"the end of job {job}"))


@pytest.mark.ci
def test_round_after_round_by_plain_sbatch_gives_the_same_csv(suite: Suite, expected: bytes) -> None:
    runs = str(suite.runs("by-rounds"))
    named = {"SCENARIO": "one-client", "SIZE": "tiny", "SET": "rounds=1", "RUNS": runs}
    assert wait_for_job(suite, sbatch_round(suite, **named)) == "COMPLETED"
    (folder,) = suite.runs("by-rounds").glob("one-client-*")
    run = Run(suite, RunDir(folder))
    assert {
        stage.round for group in read_plan(run.folder).pending(run.folder.is_committed) for stage in group
    } == {1}
    # From now on the newest run is meant, without a word.
    assert wait_for_job(suite, sbatch_round(suite, RUNS=runs)) == "COMPLETED"
    assert run.folder.metrics_csv.read_bytes() == expected
    assert wait_for_job(suite, sbatch_round(suite, RUNS=runs)) == "COMPLETED"
    assert run.folder.metrics_csv.read_bytes() == expected


def test_plain_round_sbatch_begins_scenario_1_where_there_is_no_run(suite: Suite) -> None:
    runs = suite.runs("nothing-yet")
    job = sbatch_round(suite, RUNS=str(runs))
    folder = wait_for(lambda: next(runs.glob("1-lada-*/driver.lease"), None), "a run")
    run = Run(suite, RunDir(folder.parent))
    run.wait_for(lambda: len(run.events("submitted")) == 4, "four parties' first stages")
    suite.command("scancel", job)
    run.cancel()
    first = {event["stage"] for event in run.events("submitted")}
    assert first == {f"{party}/r00-prepare" for party in ("server", "client-1", "client-2", "client-3")}


def test_where_nodes_may_not_submit_the_stages_run_inside_the_drivers_job(
    suite: Suite, expected: bytes
) -> None:
    cluster = suite.cluster(stages="inside", driver={"memory_gb": 2})
    run = suite.submit("inside", cluster=cluster).wait()
    assert run.folder.metrics_csv.read_bytes() == expected
    assert run.events("submitted") == []


def test_the_loop_on_a_login_node(suite: Suite, expected: bytes) -> None:
    """`make drive`: where nobody may submit from a compute node, or no driver's job is wanted."""
    run = suite.submit("by-hand")
    run.cancel()
    suite.jobs("drive", "--run", str(run.folder.root))
    assert run.folder.metrics_csv.read_bytes() == expected


@pytest.mark.ci
def test_private_words_are_nowhere_but_in_their_partys_folder(suite: Suite) -> None:
    """A canary in every private question, and every private question a canary itself."""
    run = suite.submit("canary")
    run.cancel()
    planted = []
    assert not any((run.folder.root / "parties").glob("*/r00-*")), "nothing was computed from the old words"
    for party, parts in (("client-1", ("train", "test")), ("server", ("test",))):
        for part in parts:
            path = run.folder.data(party, part)
            items = read_jsonl(Item, path)
            canary = f"canary {party} {part} 7f3e"
            marked = [item.model_copy(update={"question": f"{canary} {item.question}"}) for item in items]
            owner = path.stat()
            write_atomic(path, "".join(item.model_dump_json() + "\n" for item in marked))
            os.chown(path, owner.st_uid, owner.st_gid)
            planted += [canary, *(item.question for item in items)]
    run.resume()
    run.wait()
    places = [run.folder.root / "exchange", run.folder.root / "logs", run.folder.root / "metrics.csv"]
    texts = {path: path.read_bytes() for place in places for path in files(place)}
    assert len(texts) > 20
    assert any(path.name.endswith(".pkl") for path in texts), "submitit's pickles are searched too"
    for words in planted:
        found = [path for path, content in texts.items() if words.encode() in content]
        assert not found, f"'{words}' in {found}"
    assert planted[0].encode() in run.folder.data("client-1", "train").read_bytes()


def files(place: Path) -> list[Path]:
    return [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]


@pytest.mark.ci
def test_a_second_driver_is_told_who_the_first_is(suite: Suite, expected: bytes) -> None:
    run = suite.submit("two-drivers")
    run.wait_for(run.folder.lease.is_file, "a lease")
    refused = suite.jobs("drive", "--run", str(run.folder.root), check=False)
    assert refused.returncode == 9
    assert f"job {json.loads(run.folder.lease.read_text())['job']}" in refused.stderr
    run.wait()
    assert run.folder.metrics_csv.read_bytes() == expected


def test_changed_code_is_refused_named_and_amended(suite: Suite, expected: bytes) -> None:
    """In a copy of the copy, whose code may be touched."""
    own = open_suite(Path(suite.environment["DEVCLUSTER"]), "test-suite-edited")
    run = own.submit("changed")
    run.wait_for(lambda: run.folder.is_committed(Stage(0, "prepare", "server")), "a first commit")
    run.cancel()
    source = own.folder / "lada" / "answers.py"
    source.write_text(source.read_text() + "\n# edited\n")
    refused = run.resume()
    assert refused.returncode == 8
    assert "code: " in refused.stderr
    assert "AMEND=1" in refused.stderr
    own.jobs("resume", "--run", str(run.folder.root), "--amend")
    run.wait()
    assert run.folder.metrics_csv.read_bytes() == expected
