"""`make plan`: a dry run of runs that are there and of runs that are not; nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.batch import sbatch_text
from jobs.cluster import cluster_file, load_cluster, read_cluster, write_cluster
from lada.errors import ConfigError
from lada.layers import read_run
from lada.policy import Change
from lada.rundir import RunDir, Stage
from tests.fake_runs import drive, make_run
from tests.queues import devcluster, on_cluster

pytestmark = pytest.mark.usefixtures("no_fsync")


def plan(*arguments: str) -> int:
    return main(["plan", *arguments])


@pytest.fixture()
def run(tmp_path: Path) -> RunDir:
    return on_cluster(make_run(tmp_path, "rounds=2"), tmp_path)


def test_a_run_that_is_there(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--run", str(run.root)) == 0
    shown = capsys.readouterr().out
    assert "Left: 10 stages in 5 groups" in shown
    # server 2 GPUs, client 1 GPU, an hour each, five groups
    assert "at most 15.0 GPU-hours, 10.0 core-hours, 5.0 hours" in shown
    assert shown.count("The batch script of") == 2, "one per party"
    assert "sbatch --job-name=run.driver." in shown


def test_the_scripts_are_exactly_what_is_submitted(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("--run", str(run.root), "--full", "--json") == 0
    stages = {one["stage"]: one for one in json.loads(capsys.readouterr().out)["stages"]}
    assert len(stages) == 10 and all(one["sbatch"] for one in stages.values())
    stage = Stage(2, "learn", "client-1")
    config, cluster = read_run(run.root), devcluster(tmp_path)
    expected = sbatch_text(run, config, cluster, stage, "01-00000000", Change())
    assert stages[str(stage)]["sbatch"] == expected
    assert "#SBATCH --job-name=run.r02-learn.client-1" in expected


def test_what_is_committed_is_left_out_of_the_totals(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    drive(run, rounds=1)
    assert plan("--run", str(run.root), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["exists"] and found["totals"]["stages"] == 4 and found["totals"]["groups"] == 2
    assert found["totals"]["gpu_hours"] == pytest.approx(6.0)
    assert sum(one["committed"] for one in found["stages"]) == 6
    shown = [one["stage"] for one in found["stages"] if one["sbatch"]]
    assert shown == ["server/r02-respond", "client-1/r02-respond"]
    drive(run)
    assert plan("--run", str(run.root)) == 0
    printed = capsys.readouterr().out
    assert "Left: 0 stages" in printed and "batch script" not in printed


def test_a_model_without_resources_is_refused(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = run.root / "small.yaml"
    cluster.write_text("resources: [{up_to: 3}]\n")
    assert plan("--run", str(run.root), "--cluster", str(cluster)) == 2
    assert "has no resources for" in capsys.readouterr().err


def test_stages_inside_the_driver_s_job_have_no_scripts(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = run.root / "inside.yaml"
    cluster.write_text("stages: inside\nresources: [{up_to: 80}]\n")
    assert plan("--run", str(run.root), "--cluster", str(cluster)) == 0
    shown = capsys.readouterr().out
    assert "inside its own allocation" in shown and "batch script" not in shown


def test_a_run_that_is_not_there_yet_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    asked = ["--scenario", "2", "--size", "tiny", "--seed", "3", "--set", "rounds=1 local.num_samples=2"]
    assert plan(*asked, "--cluster", "a800", "--runs", str(runs), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert not runs.exists() and found["exists"] is False
    assert found["run_id"].startswith("2-lada-lab-math-0shot-s3-")
    resources = {one["model"]: one["resources"]["gpus"] for one in found["stages"]}
    assert set(resources.values()) == {0}, "the lab tier's models need none, whatever they are called"
    assert found["totals"]["stages"] == 3 * 4


def test_what_an_earlier_version_left_with_a_run_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")
    write_cluster(run, load_cluster("a800"))
    content = json.loads(cluster_file(run).read_text())
    content["planning"]["texts"] = {"question": 130}
    cluster_file(run).write_text(json.dumps(content))
    found = read_cluster(run)
    assert found.planning is None and found.resources == load_cluster("a800").resources
    cluster_file(run).write_text(json.dumps(content | {"nodes": 3}))
    with pytest.raises(ConfigError, match=r"cluster\.json .*nodes: .*make resume RUN=… CLUSTER="):
        read_cluster(run)


def test_a_wrong_option_is_refused_in_lada_s_own_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert plan("--scenario", "27", "--cluster", "a800", "--runs", str(tmp_path)) == 2
    assert "no configs/scenarios/27.yaml" in capfd.readouterr().err


def test_without_slurm_on_this_host(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("python3", "git", "env"):
        (bare / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(bare))
    assert shutil.which("sbatch") is None and os.environ["PATH"] == str(bare)
    assert plan("--run", str(run.root)) == 0
    assert "#SBATCH --dependency=singleton" in capsys.readouterr().out
