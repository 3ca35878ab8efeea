"""What a stage's container sees: binds, environment, command line. Tried for real in tests/cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs import container, host
from jobs.cluster import ROOT, Cluster, SizedResources
from jobs.container import (
    SCRATCH,
    SETTINGS,
    Bind,
    container_argv,
    container_environment,
    host_binds,
    prepare_folders,
    scratch_folder,
    stage_binds,
    stage_command,
)
from lada.errors import ConfigError
from lada.exchange import exchange_root
from lada.lab import WEIGHTS, short_name
from lada.layers import read_run
from lada.rundir import RunDir, Stage
from tests.fake_runs import make_run

PARTIES = ("server", "client-1", "client-2")
LEARN = Stage(2, "learn", "client-1")


def cluster(**values: object) -> Cluster:
    return Cluster.model_validate({"name": "x", "resources": [SizedResources(up_to=80)], **values})


@pytest.fixture()
def run(tmp_path: Path) -> RunDir:
    """A run in which every file is named after its folder."""
    made = make_run(tmp_path)
    prepare_folders(made, PARTIES)
    made.provenance_json.write_text("{}")
    for path in (made.ledger_jsonl, made.metrics_csv, made.lease, made.root / "logs" / "server" / "x.log"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    for party in PARTIES:
        (made.party(party) / "file").write_text(party)
        for recipient in (*PARTIES, "all"):
            (exchange_root(made) / party / recipient / "file").write_text(party)
    return made


def seen(binds: Sequence[Bind], run: RunDir, *, writable: bool) -> set[str]:
    """Files of the run that the binds show."""
    folders = [bind.source for bind in binds if bind.writable or not writable]
    files = [path for path in run.root.rglob("*") if path.is_file()]
    found = [path for path in files if any(path.is_relative_to(folder) for folder in folders)]
    return {path.relative_to(run.root).as_posix() for path in found}


@pytest.mark.parametrize("party", PARTIES)
def test_a_party_sees_what_is_its_own_or_addressed_to_it_and_nothing_else(run: RunDir, party: str) -> None:
    others = [one for one in PARTIES if one != party]
    own = {f"parties/{party}/file"} | {f"exchange/{party}/{to}/file" for to in (*PARTIES, "all")}
    received = {f"exchange/{one}/{to}/file" for one in others for to in (party, "all")}
    described = {"run.yaml", "plan.json", "provenance.json", "data/public.jsonl"}
    binds = stage_binds(run, party, PARTIES, cluster(), job={})
    assert seen(binds, run, writable=True) == own
    assert seen(binds, run, writable=False) == own | received | described


def test_the_run_has_files_that_no_party_may_see(run: RunDir) -> None:
    """Or the test above could not fail."""
    every = {path.relative_to(run.root).as_posix() for path in run.root.rglob("*") if path.is_file()}
    assert {"sealed/public.jsonl", "logs/server/x.log", "ledger.jsonl", "parties/server/file"} <= every


def test_code_is_shown_without_runs_and_git_and_paths_are_the_same_inside(run: RunDir) -> None:
    binds = stage_binds(run, "server", PARTIES, cluster(), job={})
    code = [bind.source.relative_to(ROOT).as_posix() for bind in binds if bind.source.is_relative_to(ROOT)]
    assert code == ["lada", "configs"]
    assert all(bind.source == bind.target for bind in binds)
    assert str(binds[0]) == f"{ROOT}/lada:{ROOT}/lada:ro"
    assert str(binds[-1]).endswith("parties/server:rw")


def test_a_relative_run_folder_is_bound_by_its_whole_path(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.root.parent)
    relative = RunDir(Path(run.root.name))
    assert stage_binds(relative, "server", PARTIES, cluster(), job={}) == stage_binds(
        run, "server", PARTIES, cluster(), job={}
    )
    command = stage_command(relative, LEARN, "0", ranks_per_node=1, nodes=1, job={})
    assert str(run.root) in command


@pytest.mark.parametrize("target", ["parties/server", "nowhere"])
def test_a_link_in_the_place_of_an_exchange_folder_is_moved_away(run: RunDir, target: str) -> None:
    """Or client-2 would show the others, in their own containers, what client-1 keeps to itself."""
    planted = exchange_root(run) / "client-2" / "all"
    (planted / "file").unlink()
    planted.rmdir()
    planted.symlink_to(run.root / target)
    binds = stage_binds(run, "client-1", PARTIES, cluster(), job={})
    assert planted in [bind.source for bind in binds]
    assert planted.is_dir() and not planted.is_symlink() and not list(planted.iterdir())
    assert [path.readlink() for path in run.rejected("client-2").iterdir()] == [run.root / target]
    assert prepare_folders(run, PARTIES) == []


def test_what_is_missing_is_named(run: RunDir, tmp_path: Path) -> None:
    run.provenance_json.unlink()
    with pytest.raises(ConfigError, match=r"provenance.json is missing on \S+; a container has to see it"):
        stage_binds(run, "server", PARTIES, cluster(), job={})
    with pytest.raises(ConfigError, match="/no/such is missing"):
        host_binds(cluster(binds=["/no/such"]), tmp_path, job={})


@pytest.mark.parametrize("path", ["/a:b", "/a,b", "/a\nb", "relative"])
def test_a_path_that_apptainer_would_read_otherwise_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot be bound"):
        Bind(Path(path), Path("/target"))
    with pytest.raises(ConfigError, match="cannot be bound"):
        Bind(Path("/source"), Path(path))


def test_the_sites_own_binds_are_read_only(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SITE", str(tmp_path))
    site = cluster(binds=["$SITE", "$SITE:/elsewhere"])
    binds = stage_binds(run, "server", PARTIES, site, job={})
    assert [str(bind) for bind in binds[-2:]] == [f"{tmp_path}:{tmp_path}:ro", f"{tmp_path}:/elsewhere:ro"]
    devices = stage_binds(run, "server", PARTIES, cluster(binds=["/dev/shm"]), job={})
    assert str(devices[-1]) == "/dev/shm:/dev/shm:ro", "as /dev/infiniband is shown where there is one"


def test_the_paper_tier_needs_a_folder_of_models(tmp_path: Path) -> None:
    run = make_run(tmp_path, "tier=paper")
    run.provenance_json.write_text("{}")
    with pytest.raises(ConfigError, match="names no `models` folder"):
        stage_binds(run, "server", PARTIES, cluster(), job={})
    with pytest.raises(ConfigError, match="/no/models is missing"):
        stage_binds(run, "server", PARTIES, cluster(models="/no/models"), job={})
    for named in (
        stage_binds(run, "server", PARTIES, cluster(models=str(tmp_path)), job={}),
        stage_binds(run, "server", PARTIES, cluster(), job={"LADA_MODELS": str(tmp_path)}),
    ):
        assert Bind(tmp_path, tmp_path) in named


def test_other_lab_weights_are_shown_and_named(run: RunDir, tmp_path: Path) -> None:
    job = {"LADA_LAB_WEIGHTS": str(tmp_path)}
    assert Bind(tmp_path, tmp_path) in stage_binds(run, "server", PARTIES, cluster(), job=job)
    environment = container_environment(cluster(), threads=1, job=job)
    assert "APPTAINERENV_LADA_CHECKPOINTING" not in environment
    again = container_environment(cluster(), threads=1, job=job, checkpointing=True)
    assert again == {**environment, "APPTAINERENV_LADA_CHECKPOINTING": "1"}
    assert environment["APPTAINERENV_LADA_LAB_WEIGHTS"] == str(tmp_path)


@pytest.mark.parametrize("where", ["committed", "LADA_LAB_WEIGHTS", "LADA_MODELS", "cluster file"])
def test_a_party_sees_the_public_models_of_all_parties_and_nothing_that_others_trained(
    where: str, tmp_path: Path
) -> None:
    """FedMKT's ``seq`` reads every party's tokenizer: models as they came are public, adapters are not."""
    paper = where in ("LADA_MODELS", "cluster file")
    run = make_run(tmp_path, *(["tier=paper"] if paper else []))
    prepare_folders(run, PARTIES)
    run.provenance_json.write_text("{}")
    (run.party("server") / "model.safetensors").write_text("trained")
    models = WEIGHTS if where == "committed" else tmp_path / "models"
    folders = {
        models / (one.model.rpartition("/")[2] if paper else short_name(one.model))
        for one in read_run(run.root).parties
    }
    assert len(folders) == 2, "the client's model is another than the server's"
    for path in [] if where == "committed" else folders:
        path.mkdir(parents=True)
        (path / "tokenizer.json").write_text("{}")
        (path / "config.json").write_text("{}")
    job = {where: str(models)} if where.startswith("LADA") else {}
    site = cluster(models=str(models)) if where == "cluster file" else cluster()
    binds = stage_binds(run, "client-1", PARTIES, site, job=job)
    for path in folders:
        for name in ("tokenizer.json", "config.json"):
            assert (path / name).is_file()
            (shown,) = [bind for bind in binds if (path / name).is_relative_to(bind.source)]
            assert shown.source == shown.target and not shown.writable
    others = [run.party("server"), run.party("client-2")]
    assert not [bind for bind in binds for path in others if path.is_relative_to(bind.source)]


def test_trusted_commands_may_write_all_runs_and_read_named_files(tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text("[]")
    runs = tmp_path / "runs"
    runs.mkdir()
    binds = host_binds(cluster(), runs, files=[data, ROOT / "configs" / "scenarios" / "1.yaml"], job={})
    assert [bind.source for bind in binds if bind.writable] == [runs]
    assert [bind.source for bind in binds if not bind.writable] == [ROOT / "lada", ROOT / "configs", data]


def test_scratch_is_the_temporary_folder_inside_and_goes_away(run: RunDir, tmp_path: Path) -> None:
    with scratch_folder({"TMPDIR": str(tmp_path)}) as scratch:
        assert scratch.parent == tmp_path
        assert scratch.stat().st_mode & 0o777 == 0o700
        (scratch / "x").write_text("x")
        binds = stage_binds(run, "server", PARTIES, cluster(), scratch=scratch, job={})
        assert binds[0] == Bind(scratch, SCRATCH, writable=True)
    assert not scratch.exists()


# -- the command line


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGES", "/images")
    site = cluster(image="$IMAGES/x.sif", apptainer=["env", "A=b", "apptainer"], nvidia=False)
    argv = container_argv(site, [Bind(Path("/a"), Path("/b"), writable=True)], ["python"], pwd=Path("/c"))
    assert argv == [
        *("env", "A=b", "apptainer", "--quiet", "exec"),
        *("--contain", "--no-home", "--cleanenv", "--pid", "--ipc"),
        *("--pwd", "/c", "--bind", "/a:/b:rw", "/images/x.sif", "python"),
    ]
    assert "--nv" in container_argv(cluster(), [], [], pwd=Path("/c"))


def test_one_rank_runs_python_itself(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    command = stage_command(run, LEARN, "0-1", ranks_per_node=1, nodes=1, job={})
    assert command == [
        *("python", "-m", "lada", "step", "--run", str(tmp_path)),
        *("--party", "client-1", "--stage", "r02-learn", "--attempt", "0-1"),
    ]
    halved = stage_command(run, LEARN, "0-1", ranks_per_node=1, nodes=1, micro_batch_divisor=2, job={})
    assert halved == [*command, "--micro-batch-divisor", "2"]


def test_more_ranks_run_under_torchrun_which_ignores_warnings(tmp_path: Path) -> None:
    command = stage_command(RunDir(tmp_path), LEARN, "0", ranks_per_node=4, nodes=1, job={})
    assert command[:4] == ["bash", "-c", 'trap "" USR2; exec "$@"', "ranks"]
    starts = ["python", "-m", "lada.torchrun", "--standalone", "--nproc-per-node=4", "-m", "lada", "step"]
    assert command[4:12] == starts
    assert "--zero" not in command
    shared = stage_command(RunDir(tmp_path), LEARN, "0", ranks_per_node=4, nodes=1, zero=3, job={})
    assert shared == [*command, "--zero", "3"]


def test_nodes_meet_at_the_first_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "scontrol"
    fake.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[3-4]" ] && printf "n3\\nn4\\n"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "n[3-4]", "SLURM_NODEID": "1"}
    command = stage_command(RunDir(tmp_path), LEARN, "0", ranks_per_node=8, nodes=2, job=job)
    assert command[7:14] == [
        *("--nnodes=2", "--nproc-per-node=8", "--node-rank=1"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=n3:29745", "--rdzv-id=12345", "-m"),
    ]
    with pytest.raises(ConfigError, match="does not name the nodes"):
        stage_command(
            RunDir(tmp_path), LEARN, "0", ranks_per_node=8, nodes=2, job={**job, "SLURM_JOB_NODELIST": "?"}
        )
    with pytest.raises(ConfigError, match="SLURM_NODEID is not set"):
        del job["SLURM_NODEID"]
        stage_command(RunDir(tmp_path), LEARN, "0", ranks_per_node=8, nodes=2, job=job)


# -- the environment


def test_nothing_but_listed_variables_goes_inside() -> None:
    job = {
        "PATH": "/nowhere",
        "SLURM_JOB_ID": "7",
        "SLURM_JWT": "canary",
        "HF_TOKEN": "canary",
        "PYTHONPATH": "/canary",
        "LD_LIBRARY_PATH": "/canary",
        "APPTAINERENV_CANARY": "canary",
        "APPTAINER_BIND": "/canary",
        "SINGULARITYENV_CANARY": "canary",
        "https_proxy": "canary",
    }
    found = container_environment(cluster(), threads=2, job=job)
    assert "canary" not in " ".join(f"{key}={value}" for key, value in found.items()).lower()
    assert found["PATH"].endswith("/nowhere"), "of Apptainer itself"
    inside = {key.removeprefix("APPTAINERENV_") for key in found if key.startswith("APPTAINERENV_")}
    assert inside == set(SETTINGS) | {"SLURM_JOB_ID", "OMP_NUM_THREADS"}
    assert found["APPTAINERENV_OMP_NUM_THREADS"] == "2"


def test_what_serves_the_image_is_found_first_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path() -> str:
        return container_environment(cluster(), threads=None, job={"PATH": "/bin"})["PATH"]

    monkeypatch.setattr(container, "USUAL_PLACES", str(tmp_path))
    assert path() == "/bin"
    (tmp_path / "squashfuse_ll").touch(0o755)
    assert path() == f"{ROOT}/containers/fuse:/bin"
    assert os.access(ROOT / "containers" / "fuse" / "squashfuse_ll", os.X_OK)


def test_the_site_has_the_last_word_on_the_environment() -> None:
    site = cluster(environment={"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "ib0"})
    found = container_environment(site, threads=None, job={"GLIBC_TUNABLES": ""})
    assert found["APPTAINERENV_NCCL_DEBUG"] == "INFO"
    assert found["APPTAINERENV_NCCL_SOCKET_IFNAME"] == "ib0"
    assert found["APPTAINERENV_GLIBC_TUNABLES"] == "", "as the job has it"
    assert "APPTAINERENV_OMP_NUM_THREADS" not in found


def test_caches_lie_in_the_temporary_folder_and_nothing_is_fetched() -> None:
    assert all(SETTINGS[name] == "1" for name in SETTINGS if name.endswith("_OFFLINE"))
    inside = [value for value in SETTINGS.values() if value.startswith("/")]
    assert len(inside) >= 6
    assert all(Path(value).is_relative_to(SCRATCH) for value in inside)


def test_several_ranks_are_told_to_ledger_and_provenance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "image_digest", lambda path: "0" * 64)
    several = SizedResources(up_to=80, gpus=4, ranks=4, nodes=2, zero=3)
    assert several.shared() == {"ranks": 8, "zero": 3}
    assert SizedResources(up_to=9).shared() == {}
    site = cluster().model_copy(update={"resources": (SizedResources(up_to=9), several)})
    assert json.loads(host.facts(site))["ranks"] == [{"up_to": 80, "nodes": 2, "ranks": 4, "zero": 3}]
    assert "ranks" not in json.loads(host.facts(cluster()))
