"""`make stage`: what it fetches, pins and verifies, and how runs and the doctor find it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import jobs.staging_lock as lock_module
from jobs.check_staged import check_staged
from jobs.cluster import ROOT, load_cluster
from jobs.staging_lock import LOCK, differences, read_lock
from lada.layers import CONFIGS, read_yaml
from lada.staged import RECORD, models_of, read_record, read_sources, weights_digest
from tests.staging_site import DATA, LLAMA, QWEN, SHARD, TAKEN, Site, model_files


@pytest.fixture()
def site(staging_site: Site) -> Site:
    return staging_site


# -- what is fetched, and where it goes


def test_a_scenario_and_its_data_are_staged_pinned_and_found_by_name(site: Site) -> None:
    assert site.stage() == 0, site.error
    assert site.files("Qwen3-32B") == sorted([RECORD, *TAKEN])
    assert (site.data / "mathinstruct" / "MathInstruct.json").read_bytes() == b"[]" * 500
    assert not list(site.models.glob(".staging/*")) and not list(site.data.glob(".staging/*"))
    entry = site.entry()
    assert entry["revision"] == site.hub.repos[f"models/{QWEN}"].main
    content = model_files("qwen")[SHARD]
    assert entry["files"][SHARD] == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}  # type: ignore[index]
    assert sorted(entry["files"]) == sorted(TAKEN)  # type: ignore[call-overload]
    assert site.entry("TIGER-Lab/MathInstruct", "datasets")["revision"] == site.hub.repos[DATA].main
    assert "gated (the llama3 licence)" in site.out and "All is there" in site.out


def test_the_second_time_nothing_is_asked_of_the_hub(site: Site) -> None:
    site.stage()
    before = site.lock.read_bytes()
    site.hub.requests.clear()
    assert site.stage() == 0 and site.out.count("staged, as in the lock") == 3
    assert site.stage("--full") == 0
    assert site.hub.requests == [] and site.lock.read_bytes() == before


def test_a_dry_run_says_sizes_and_writes_nothing(site: Site) -> None:
    before = site.lock.read_bytes()
    assert site.stage("--dry") == 0
    assert "newest, to be pinned" in site.out and "6 files" in site.out
    assert not site.models.exists() and site.lock.read_bytes() == before
    assert not site.hub.fetched(".json")


def test_the_lab_data_needs_no_staging_and_unknown_data_is_refused(site: Site) -> None:
    assert site.stage(dataset="lab-math") == 0 and not site.data.exists()
    assert site.stage(dataset="aqua-rat") == 2 and "DATA=<file>" in site.error
    assert site.stage(dataset="mathinstrukt") == 2 and "mathinstruct" in site.error
    assert site.stage(scenario="7") == 2 and "five-clients" in site.error


def test_further_models_can_be_named(site: Site) -> None:
    site.hub.repo("models/Qwen/Qwen3-0.6B", model_files("small"))
    assert site.stage("--model", "Qwen/Qwen3-0.6B", "--scenario", dataset="lab-math") == 0
    assert [path.name for path in site.models.iterdir() if path.name != ".staging"] == ["Qwen3-0.6B"]


def test_the_cluster_file_names_the_folders(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = site.root / "mine.yaml"
    text = "models: {root}/m\ndata: {root}/d\nresources: [{{up_to: 80}}]\n"
    cluster.write_text(text.format(root=site.root))
    monkeypatch.delenv("LADA_MODELS")
    assert site.stage("--cluster", str(cluster)) == 0
    assert (site.root / "m" / "Qwen3-32B").is_dir() and (site.root / "d" / "mathinstruct").is_dir()
    cluster.write_text(f"models: {site.root}/m\nresources: [{{up_to: 80}}]\n")
    monkeypatch.delenv("LADA_DATA")
    assert site.stage("--cluster", str(cluster)) == 2
    assert "mine.yaml names no `data` folder" in site.error and "LADA_DATA" in site.error
    assert site.stage() == 2 and "CLUSTER=<name>" in site.error


# -- pins


def test_the_pinned_commit_stays_when_the_branch_moves_on(site: Site) -> None:
    site.stage()
    shutil.rmtree(site.models)
    pinned = site.entry()
    site.hub.repos[f"models/{QWEN}"].push(model_files("newer"))
    assert site.stage() == 0
    assert site.entry() == pinned and b'"qwen"' in (site.models / "Qwen3-32B" / "config.json").read_bytes()


def test_a_commit_that_is_gone_from_the_hub(site: Site) -> None:
    site.stage()
    shutil.rmtree(site.models)
    repo = site.hub.repos[f"models/{QWEN}"]
    repo.commits.clear()
    repo.push(model_files("rewritten history"))
    assert site.stage() == 15
    assert "does not have the commit" in site.error and "`revision` to null" in site.error
    assert not (site.models / "Qwen3-32B").exists()


def test_a_hub_that_changed_what_a_commit_holds_is_refused_before_fetching(site: Site) -> None:
    site.stage()
    shutil.rmtree(site.models)
    repo = site.hub.repos[f"models/{QWEN}"]
    repo.commits[repo.main][SHARD] = b"x" * 2976
    site.hub.requests.clear()
    assert site.stage() == 15 and f"{SHARD} is another file" in site.error
    del repo.commits[repo.main][SHARD]
    assert site.stage() == 15 and f"{SHARD} is not there" in site.error
    assert not site.hub.fetched(".safetensors")


def test_a_small_file_that_changed_is_seen_by_the_lock(site: Site) -> None:
    """The hub lists no sha256 of small files; an unfaithful mirror is found out when they are there."""
    site.stage()
    shutil.rmtree(site.models)
    repo = site.hub.repos[f"models/{QWEN}"]
    repo.commits[repo.main]["LICENSE"] = b"TERMS"
    assert site.stage() == 15 and "LICENSE has hash" in site.error and "the lock says" in site.error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / SHARD).write_bytes(b"x" * 2976), f"{SHARD} has sha256"),
        (lambda folder: (folder / SHARD).write_bytes(b"x"), f"{SHARD} has 1 bytes"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    ],
)
def test_a_staged_folder_that_changed_is_refused(
    site: Site, change: Callable[[Path], object], said: str
) -> None:
    site.stage()
    change(site.models / "Qwen3-32B")
    assert site.stage() == 15
    assert said in site.error and "Move the folder away" in site.error


def test_only_a_full_check_sees_what_left_size_and_time_alone(site: Site) -> None:
    site.stage()
    path = site.models / "Qwen3-32B" / SHARD
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert site.stage() == 0
    assert site.stage("--full") == 15 and f"{SHARD} has sha256" in site.error


def test_a_colleagues_folder_is_adopted_into_an_empty_lock(site: Site) -> None:
    site.stage()
    before = json.loads(site.lock.read_text())
    site.lock.write_text('{"models": {}, "datasets": {}}')
    site.hub.requests.clear()
    assert site.stage() == 0 and site.hub.requests == []
    assert json.loads(site.lock.read_text()) == before


def test_a_folder_of_unknown_origin_is_verified_or_refused(site: Site) -> None:
    site.stage()
    (site.models / "Qwen3-32B" / RECORD).unlink()
    assert site.stage() == 0, "the lock knows its files"
    (site.models / "Qwen3-32B" / RECORD).unlink()
    (site.data / "mathinstruct" / RECORD).unlink()
    site.lock.write_text('{"models": {}, "datasets": {}}')
    assert site.stage(dataset="lab-math") == 15 and f"MODELS={site.models}" in site.error
    assert site.stage("--scenario") == 15
    assert f"DATA={site.data}/mathinstruct/MathInstruct.json" in site.error


def test_what_differs_is_listed() -> None:
    file = lock_module.LockedFile(size=1, sha256="a" * 64)
    other = lock_module.LockedFile(size=1, sha256="b" * 64)
    lines = differences({"a": file, "b": file, "c": file}, {"b": other, "c": file, "d": file})
    assert [line.split()[0] for line in lines] == ["a", "b", "d"]


# -- MODELS=<folder>


def copy_of(model: str, folder: Path) -> Path:
    for name, content in model_files(model).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / RECORD).unlink()
    return folder


def test_models_on_disk_are_used_and_said_to_be_unverified(site: Site) -> None:
    own = site.root / "own"
    copy_of("qwen", own / "Qwen3-32B")
    assert site.stage("--models", str(own)) == 2
    assert f"has no {own}/Meta-Llama-3-8B" in site.error
    copy_of("llama", own / "Meta-Llama-3-8B")
    assert site.stage("--models", str(own), dataset="lab-math") == 0
    assert site.out.count("unverified: the lock has no sha256 of it") == 2 and site.hub.requests == []
    assert json.loads(site.lock.read_text())["models"] == {}
    record = read_record(own / "Qwen3-32B")
    assert record is not None and record.revision is None and sorted(record.files) == sorted(TAKEN)
    assert not site.models.exists()


def test_models_on_disk_are_held_against_the_lock(site: Site) -> None:
    site.stage()
    own = site.root / "own"
    copy_of("qwen", own / "Qwen3-32B")
    copy_of("llama", own / "Meta-Llama-3-8B")
    (own / "Qwen3-32B" / "LICENSE").unlink()
    (own / "Qwen3-32B" / "vocab.json").write_text("{}")
    assert site.stage("--models", str(own)) == 0
    assert "5 files as in the lock, not in the lock: vocab.json" in site.out
    record = read_record(own / "Qwen3-32B")
    assert record is not None and record.revision == site.entry()["revision"]
    (own / "Qwen3-32B" / SHARD).write_bytes(b"x" * 2976)
    assert site.stage("--models", str(own)) == 15 and f"{SHARD} has sha256" in site.error
    (own / "Qwen3-32B" / SHARD).unlink()
    assert site.stage("--models", str(own)) == 4 and f"lacks {SHARD}" in site.error


# -- what runs make of it


def test_weights_have_one_digest_wherever_it_comes_from(site: Site) -> None:
    site.stage()
    folder = site.models / "Qwen3-32B"
    known = weights_digest(folder)
    (folder / RECORD).unlink()
    assert weights_digest(folder) == known, "computed"
    (folder / SHARD).write_bytes(b"other")
    assert weights_digest(folder) != known
    assert weights_digest(site.root / "nowhere") is None


def test_the_digest_of_one_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert weights_digest(tmp_path) == hashlib.sha256(b"weights").hexdigest()


# -- what is shipped


def test_the_shipped_lock_names_what_scenarios_and_data_sets_need() -> None:
    lock, sources = read_lock(LOCK), read_sources()
    scenarios = sorted(path.stem for path in (CONFIGS / "scenarios").glob("*.yaml"))
    assert set(lock.models) >= set(models_of(scenarios)) and len(lock.models) >= 10
    assert set(lock.datasets) == {source.repository for source in sources.datasets.values()}
    for name in sources.datasets:
        assert read_yaml(CONFIGS / "datasets" / f"{name}.yaml")["dataset"]["name"] == name
    for entry in (*lock.models.values(), *lock.datasets.values()):
        assert entry.revision is not None or entry.files == {}


def test_two_modules_alone_know_the_hub() -> None:
    imports = ("import huggingface_hub", "from huggingface_hub")
    models = ROOT / "lada" / "models.py"  # transformers' configurations raise one of its errors
    files = {*(ROOT / "jobs").glob("*.py"), *(ROOT / "lada").rglob("*.py")} - {models}
    users = [path.name for path in files if any(one in path.read_text() for one in imports)]
    assert sorted(users) == ["staging_hub.py", "staging_refusals.py"]


# -- the doctor


def findings(site: Site, **changes: object) -> list[tuple[str, str, str]]:
    facts = {"models": str(site.models), "data": str(site.data), **changes}
    return [
        (one.level, one.subject, one.text)
        for one in check_staged(load_cluster("a800").model_copy(update=facts))
    ]


def test_the_doctor_holds_staged_folders_against_the_lock(site: Site) -> None:
    assert findings(site, models=None, data=None) == []
    assert [one[:2] for one in findings(site)] == [("warn", "data")], "nothing is staged yet"
    site.stage()
    models, data, missing = findings(site)
    assert models == ("ok", "staged models", "Qwen3-32B, Meta-Llama-3-8B: as in the lock")
    assert data == ("ok", "staged data", "mathinstruct: as in the lock")
    assert missing[0] == "warn" and "no cot-collection" in missing[2]
    (site.models / "Qwen3-32B" / SHARD).write_bytes(b"x")
    (site.models / "Meta-Llama-3-8B" / RECORD).unlink()
    level, _, text = findings(site)[0]
    assert level == "warn" and f"Qwen3-32B: changed since it was staged: {SHARD}" in text
    assert "Meta-Llama-3-8B: not verified" in text
    (site.models / "Qwen3-32B" / SHARD).unlink()
    assert f"lacks {SHARD}" in findings(site)[0][2]


def test_the_doctor_sees_another_lock_and_what_is_half_there(site: Site) -> None:
    site.hub.failing[SHARD] = 9
    site.stage(dataset="lab-math")
    assert any(text.startswith("Qwen3-32B: half fetched") for _, _, text in findings(site))
    site.hub.failing.clear()
    site.stage(dataset="lab-math")
    content = json.loads(site.lock.read_text())
    content["models"][QWEN]["files"][SHARD]["sha256"] = "0" * 64
    content["models"][LLAMA]["files"] = {}
    site.lock.write_text(json.dumps(content))
    level, _, text = findings(site)[0]
    assert level == "warn" and f"Qwen3-32B: {SHARD} has sha256" in text and "no sha256 of it" in text
    site.lock.write_text("{}]")
    assert findings(site)[0][:2] == ("warn", "staging")


# -- make


def make(command: str) -> str:
    done = subprocess.run(
        ["make", "-n", *command.split()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_make_hands_its_variables_on() -> None:
    shown = make("stage SCENARIO=1 DATASET=mathinstruct CLUSTER=a800 FULL=1")
    assert "-m jobs stage --scenario 1 --dataset mathinstruct --cluster a800" in shown and "--full" in shown
    assert "--models /my/models" in make("stage CLUSTER=a800 MODELS=/my/models")
    assert "--models /my/models" in make("submit CLUSTER=a800 MODELS=/my/models")


def test_make_lets_staging_alone_ask_the_hub(tmp_path: Path) -> None:
    """Recipes' environments, seen by the Makefile's own rules."""
    text = (ROOT / "Makefile").read_text()
    for recipe in ("$(JOBS) stage", "$(BIN)/python -m lada methods"):
        assert recipe in text
        text = text.replace(recipe, "$(BIN)/python -c 'import os; print(os.environ)' #")
    (tmp_path / "Makefile").write_text(text)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    for name in (".ready", ".host"):
        (tmp_path / "venv" / name).touch()
    (tmp_path / "containers").mkdir()
    for name in ("requirements.lock", "requirements-test.lock", "make-venv.sh", "requirements-host.lock"):
        (tmp_path / "containers" / name).touch()
        os.utime(tmp_path / "containers" / name, (0, 0))
    said = {}
    for target in ("stage", "methods"):
        command = ["make", target, "VENV=venv", "MODELS=/my/models"]
        said[target] = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
    assert "'HF_HUB_OFFLINE': '0'" in said["stage"] and "'HF_HUB_OFFLINE': '1'" in said["methods"]
    assert "'LADA_MODELS': '/my/models'" in said["methods"]
    assert "'HF_HUB_DISABLE_TELEMETRY': '1'" in said["stage"]
