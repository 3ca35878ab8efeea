"""The batch script of a stage, as submitit renders it: what is asked for, and what a retry changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.batch import job_parameters, sbatch_text
from jobs.cluster import ROOT, Cluster, SizedResources, load_cluster
from jobs.slurm import job_name, run_mark
from lada.errors import ConfigError
from lada.layers import read_run
from lada.policy import Change
from lada.rundir import RunDir, Stage
from tests.fake_runs import make_run

STAGE = Stage(1, "learn", "client-1")


@pytest.fixture()
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path)


@pytest.fixture()
def _srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without Slurm: submitit wants to see a program of that name before it renders a script."""
    program = tmp_path / "bin" / "srun"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def site(**changes: object) -> Cluster:
    plain = Cluster(
        name="site", partition="gpu", resources=(SizedResources(up_to=80, gpus=2, memory_gb=10, minutes=60),)
    )
    return plain.model_copy(update=changes)


def lines(run: RunDir, cluster: Cluster, change: Change = Change()) -> list[str]:  # noqa: B008
    return sbatch_text(run, read_run(run.root), cluster, STAGE, "01-ab", change).splitlines()


@pytest.mark.usefixtures("_srun")
def test_the_script_says_who_the_job_is_and_what_it_needs(run: RunDir) -> None:
    found = lines(run, site(account="lab", qos="normal"))
    for wanted in (
        f"#SBATCH --job-name={job_name(run, STAGE)}",
        f"#SBATCH --comment={run_mark(run)}:01-ab",
        "#SBATCH --dependency=singleton",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@300",
        "#SBATCH --open-mode=append",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=lab",
        "#SBATCH --qos=normal",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --mem=10240M",
        "#SBATCH --time=60",
    ):
        assert wanted in found
    assert not any("array" in line or "--export" in line for line in found)
    assert sum(line.startswith("srun ") and "submitit.core._submit" in line for line in found) == 1


@pytest.mark.usefixtures("_srun")
@pytest.mark.parametrize("name", ["a800", "devcluster", "devcluster-ranks"])
def test_srun_is_told_the_cpus_that_sbatch_was(name: str, run: RunDir) -> None:
    """Slurm 22.05 and newer do not hand them on: a stage's threads and ranks would share one core."""
    cluster = load_cluster(name)
    config = read_run(run.root)
    cpus = cluster.resources_of(config)[STAGE.party].cpus
    found = lines(run, cluster)
    (started,) = [line for line in found if line.startswith("srun ")]
    assert f"#SBATCH --cpus-per-task={cpus}" in found
    assert f" --cpus-per-task={cpus} " in started.partition(" -m submitit")[0], "an option of srun's own"
    assert not any(path.read_text().count("srun") for path in (ROOT / "slurm").glob("*.sbatch"))


@pytest.mark.usefixtures("_srun")
def test_a_retry_gets_what_the_first_attempt_lacked(run: RunDir) -> None:
    found = lines(run, site(), Change(memory=1.5, minutes=1.5, exclude=("n2", "n3")))
    assert "#SBATCH --mem=15360M" in found
    assert "#SBATCH --time=90" in found
    assert "#SBATCH --exclude=n2,n3" in found


@pytest.mark.usefixtures("_srun")
def test_what_a_retry_gets_ends_where_the_site_does(run: RunDir) -> None:
    line = SizedResources(up_to=80, memory_gb=10, minutes=60, most_memory_gb=12, most_minutes=70)
    found = lines(run, site(resources=(line,)), Change(memory=9, minutes=9))
    assert "#SBATCH --mem=12288M" in found
    assert "#SBATCH --time=70" in found
    assert not any("wckey" in text for text in found)


@pytest.mark.usefixtures("_srun")
def test_gpus_by_type_and_by_gres_and_the_sites_own_options(run: RunDir) -> None:
    assert "#SBATCH --gpus-per-node=a800:2" in lines(run, site(gpu_type="a800"))
    found = lines(
        run, site(gpu_option="gres", sbatch={"reservation": "lada"}, setup=("module load apptainer",))
    )
    assert "#SBATCH --gres=gpu:2" in found
    assert "#SBATCH --reservation=lada" in found
    assert "module load apptainer" in found


def test_a_party_without_gpus_asks_for_none(run: RunDir) -> None:
    cluster = site(resources=(SizedResources(up_to=80, gpus=0),))
    found = job_parameters(run, read_run(run.root), cluster, STAGE, "01-ab", Change())
    assert not {"gres", "gpus_per_node"} & set(found)


def test_two_folders_of_one_run_are_told_apart(run: RunDir, tmp_path: Path) -> None:
    assert run_mark(run) != run_mark(RunDir(tmp_path / "elsewhere" / run.root.name))


@pytest.mark.parametrize("name", ["a800", "devcluster"])
def test_every_shipped_cluster_has_resources_for_every_model_of_table_i(name: str) -> None:
    cluster = load_cluster(name)
    for model in (
        "Qwen/Qwen3-0.6B",
        "google/gemma-2-27b",
        "Qwen/Qwen2.5-72B-Instruct",
        "internlm/internlm3-8b",
    ):
        assert cluster.resources_for(model, "paper").cpus > 0


def test_the_lab_tier_asks_for_what_its_models_need() -> None:
    cluster, model = load_cluster("a800"), "Qwen/Qwen2.5-72B-Instruct"
    assert cluster.resources_for(model, "lab").gpus == 0
    for tier in ("rehearsal", "paper"):
        assert cluster.resources_for(model, tier).gpus == 8
    without = cluster.model_copy(update={"lab": None})
    assert without.resources_for(model, "lab").gpus == 8, "a site whose jobs must all ask for GPUs"


def test_a_model_that_is_too_large_or_states_no_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no resources for x/Y-405B .* up_to: 80"):
        load_cluster("a800").resources_for("x/Y-405B", "paper")
    with pytest.raises(ConfigError, match="states no size"):
        load_cluster("a800").resources_for("x/small", "paper")


def test_a_wrong_key_of_a_cluster_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("partiton: gpu\nresources: [{up_to: 9}]\n")
    with pytest.raises(ConfigError, match=r"unknown key 'partiton'; did you mean 'partition'"):
        load_cluster(str(path))
    path.write_text("resources: [{up_to: 9}, {up_to: 2}]\n")
    with pytest.raises(ConfigError, match="up_to must grow"):
        load_cluster(str(path))
