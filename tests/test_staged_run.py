"""What `make stage` left is enough: a whole run by name, DATA= not typed, in a place that has no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jobs.staging_lock as lock_module
from jobs.__main__ import main
from jobs.cluster import ROOT, Cluster
from jobs.container import container_environment, host_binds, stage_binds
from jobs.host import lada_command
from lada.data import Request
from lada.data.sources import local_file
from lada.errors import ConfigError
from lada.lab import LAB_MODELS
from lada.layers import read_run
from lada.provenance import recorded
from lada.rundir import RunDir
from lada.staged import RECORD, data_file, weights_digest
from tests.fake_hub import serve
from tests.fake_runs import make_run
from tests.smallest_models import SETTINGS

MODELS = ("Qwen/Qwen3-32B", "meta-llama/Meta-Llama-3-8B")
THINGS = ("pens", "cups", "keys", "maps", "nets", "oars", "pots", "rugs", "sacks", "taps", "urns", "vests")
PEOPLE = ("Ada", "Bo", "Cy", "Dee", "Eli", "Flo", "Gus")


def questions() -> list[dict[str, str]]:
    """Questions in MathInstruct's format, no two alike."""
    found = []
    for number, (who, what) in enumerate((who, what) for who in PEOPLE for what in THINGS):
        options = " ".join(f"({letter}) {number + place} {what}" for place, letter in enumerate("ABCDE"))
        letter = "ABCD"[number % 4]
        found.append(
            {
                "source": "data/CoT/aqua_rat.json",
                "output": f"Let's think about the multi-choice question.\nCount.\nThe answer is {letter}",
                "instruction": f"{who} counts {what} on a shelf. How many?\nAnswer Choices: {options}",
            }
        )
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, smallest_models: Path) -> Path:
    """Two small models and a data set, staged from a hub that is gone afterwards."""
    root = tmp_path_factory.mktemp("staged")
    (root / "lock.json").write_text('{"models": {}, "datasets": {}}')
    with serve() as hub, pytest.MonkeyPatch.context() as patch:
        for name in MODELS:
            folder = smallest_models / LAB_MODELS[name]
            hub.repo(f"models/{name}", {path.name: path.read_bytes() for path in folder.iterdir()})
            hub.repos[f"models/{name}"].commits[hub.repos[f"models/{name}"].main]["README.md"] = b"card"
        hub.repo("datasets/TIGER-Lab/MathInstruct", {"MathInstruct.json": json.dumps(questions()).encode()})
        patch.setattr(lock_module, "LOCK", root / "lock.json")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        places = {"LADA_MODELS": str(root / "models"), "LADA_DATA": str(root / "data")}
        for key, value in {**places, "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1,localhost"}.items():
            patch.setenv(key, value)
        assert main(["stage", "--scenario", "one-client", "--dataset", "mathinstruct"]) == 0
    return root


RUN = """
import sys
from lada.__main__ import main
from lada.lab.selfcheck import no_network

with no_network():
    sys.exit(main(sys.argv[1:]))
"""


def without_network(code: str, arguments: list[str], site: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a namespace without a network, where the host lets one be made."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LADA_"))}
    environment |= {"LADA_MODELS": str(site / "models"), "LADA_DATA": str(site / "data")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(site / "no-cache")}
    unshared = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*unshared, "true"], check=False).returncode:
        unshared = []
    command = [*unshared, sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.slow
def test_a_run_needs_no_network_and_no_data_argument(site: Path) -> None:
    settings = [part for one in (*SETTINGS, "tier=paper", "rounds=1") for part in ("--set", one)]
    asked = ["--scenario", "one-client", "--dataset", "mathinstruct", "--size", "tiny", *settings]
    done = without_network(RUN, ["run", *asked, "--runs", str(site / "runs")], site)
    assert done.returncode == 0, done.stderr
    (path,) = (site / "runs").glob("*/run.yaml")
    run = RunDir(path.parent)
    assert run.metrics_csv.is_file() and (run.party("client-1") / "r01-learn" / "manifest.json").is_file()
    assert read_run(run.root).dataset.file is None, "run.yaml knows no place of this site"
    assert "shelf" in run.public.read_text(encoding="utf-8")
    weights = {name: weights_digest(site / "models" / name.rpartition("/")[2]) for name in MODELS}
    assert recorded(run)["weights"] == weights and None not in weights.values()
    assert sorted(path.name for path in (site / "models" / "Qwen3-32B").iterdir()) == sorted(
        [RECORD, "config.json", "model.safetensors", "tokenizer.json"]
    )
    assert not (site / "no-cache").exists()


CONNECT = """
import socket
from lada.lab.selfcheck import no_network

with no_network():
    socket.create_connection(("127.0.0.1", 80), 5)
"""


def test_the_place_without_a_network_has_none(site: Path) -> None:
    done = without_network(CONNECT, [], site)
    assert done.returncode and ("unreachable" in done.stderr or "asked for a network" in done.stderr)


def test_weights_that_changed_are_read_again(site: Path, tmp_path: Path) -> None:
    """The record spares reading gigabytes; a file that changed under it is read."""
    folder = tmp_path / "Qwen3-32B"
    shutil.copytree(site / "models" / "Qwen3-32B", folder)
    before = weights_digest(folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + b"\x7f")
    assert weights_digest(folder) != before


# -- the data file's name


def test_a_data_file_is_found_by_the_data_set_s_name(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADA_DATA", str(site / "data"))
    assert data_file("mathinstruct") == site / "data" / "mathinstruct" / "MathInstruct.json"
    assert data_file("cot-collection") is None, "not staged"
    assert data_file("lab-math") is None, "has no file"
    monkeypatch.delenv("LADA_DATA")
    assert data_file("mathinstruct") is None


def test_who_has_staged_nothing_is_told_both_ways() -> None:
    request = Request("mathinstruct", "m", {"client-1": "m"}, 1, 1, 1, 0, None)
    with pytest.raises(ConfigError, match=r"DATA=<file>, or .*make stage DATASET=mathinstruct"):
        local_file(request)


def test_data_are_shown_to_what_makes_a_run_and_to_no_stage(tmp_path: Path) -> None:
    """The staged file holds the answers to the public questions."""
    run = make_run(tmp_path / "runs")
    run.provenance_json.write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "image.sif").write_bytes(b"")
    facts = {"name": "x", "data": str(tmp_path / "data"), "image": str(tmp_path / "image.sif")}
    cluster = Cluster.model_validate({**facts, "resources": [{"up_to": 80}]})
    parties = ["server", "client-1", "client-2"]
    argv, environment = lada_command(cluster, ["init"], runs=tmp_path / "runs")
    assert f"{tmp_path}/data:{tmp_path}/data:ro" in argv
    assert environment["APPTAINERENV_LADA_DATA"] == f"{tmp_path}/data"
    shown = [bind.source for bind in stage_binds(run, "server", parties, cluster, job={})]
    assert not [path for path in shown if path.is_relative_to(tmp_path / "data")]
    assert "APPTAINERENV_LADA_DATA" not in container_environment(cluster, threads=1, job={})
    elsewhere = cluster.model_copy(update={"data": None})
    job = {"LADA_DATA": str(tmp_path / "data")}
    assert tmp_path / "data" in [one.source for one in host_binds(elsewhere, tmp_path / "runs", job=job)]
