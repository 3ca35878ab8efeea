"""`make stage` where things go wrong: networks, mirrors, licences, tokens, disks, kills, two at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import jobs.staging_lock as lock_module
from jobs import staging_disk, staging_hub
from jobs.cluster import ROOT
from jobs.staging_lock import read_lock, write_locked
from lada.lease import lease
from lada.staged import RECORD
from tests.fake_hub import TOKEN
from tests.staging_site import LLAMA, QWEN, SHARD, TAKEN, Site, model_files


@pytest.fixture()
def site(staging_site: Site) -> Site:
    return staging_site


# -- a bad network, a bad hub


def test_a_cut_connection_is_gone_on_with_where_it_broke(site: Site) -> None:
    site.hub.cuts[SHARD] = [1000, 500, 300, 300]  # more often than is tried in a row without a byte
    assert site.stage() == 0, site.error
    elsewhere = [asked for _, path, asked, _ in site.hub.requests if "/elsewhere/models/Qwen" in path]
    assert "bytes=1000-" in elsewhere and "bytes=1500-" in elsewhere


def test_a_server_that_knows_no_parts_sends_all_of_it_again(site: Site) -> None:
    site.hub.cuts[SHARD], site.hub.ranges = [1000], False
    assert site.stage() == 0, site.error


def test_a_server_that_fails_for_a_while(site: Site) -> None:
    site.hub.failing[SHARD] = 2
    assert site.stage() == 0
    site.hub.failing["MathInstruct.json"] = 3
    shutil.rmtree(site.data)
    assert site.stage() == 15 and "answered 503" in site.error and "goes on" in site.error


def test_wrong_bytes_are_thrown_away_and_nothing_gets_its_name(site: Site) -> None:
    site.hub.swapped[SHARD] = b"x" * 2976
    assert site.stage() == 15
    assert f"{SHARD} has hash" in site.error and "the hub says" in site.error and "mirror" in site.error
    assert not (site.models / "Qwen3-32B").exists()
    assert not list(site.models.rglob(f"{SHARD}*"))
    site.hub.swapped.clear()
    assert site.stage() == 0


def test_a_small_file_of_wrong_bytes(site: Site) -> None:
    site.hub.swapped["LICENSE"] = b"sales"
    assert site.stage() == 15 and "LICENSE has hash" in site.error


def test_a_part_that_the_disk_spoiled_is_fetched_again_from_its_beginning(site: Site) -> None:
    revision = site.hub.repos[f"models/{QWEN}"].main
    place = site.models / ".staging" / f"Qwen3-32B@{revision[:12]}"
    place.mkdir(parents=True)
    (place / f"{SHARD}.part").write_bytes(b"?" * 1000)
    (place / "tokenizer.json").write_bytes(b"spoiled, and too long")
    (place / "of-another-choice.bin").write_bytes(b"old")
    assert site.stage() == 0, site.error
    asked = [
        one for _, path, one, _ in site.hub.requests if "elsewhere/models/Qwen" in path and SHARD in path
    ]
    assert asked == ["bytes=1000-", ""]
    assert site.files("Qwen3-32B") == sorted([RECORD, *TAKEN])


def test_no_network_is_said_as_such(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert site.stage() == 15 and "cannot be reached" in site.error and "HF_ENDPOINT=" in site.error


def test_the_offline_switch_is_said_as_such(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert site.stage() == 2 and "HF_HUB_OFFLINE=1" in site.error


def test_a_repository_without_safetensors_or_with_too_few(site: Site) -> None:
    files = model_files("qwen")
    repo = site.hub.repos[f"models/{QWEN}"]
    repo.push({name: content for name, content in files.items() if not name.endswith(".safetensors")})
    assert site.stage() == 15 and "no weights as safetensors" in site.error
    repo.push({name: content for name, content in files.items() if name != SHARD})
    assert site.stage() == 4 and f"lacks {SHARD}" in site.error
    assert not (site.models / "Qwen3-32B").exists()


# -- licences and tokens


def test_without_a_token_every_gated_model_is_named_before_anything_is_fetched(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    gemma = ("google/gemma-2-2b", "google/gemma-2-27b")
    for name in gemma:
        site.hub.repo(f"models/{name}", model_files(name), gated=True)
    assert site.stage(scenario="1") == 15
    for name in (*gemma, LLAMA):
        assert f"{name} is gated: open https://huggingface.co/{name}," in site.error
    assert "settings/tokens" in site.error and "hf auth login" in site.error and "HF_TOKEN" in site.error
    assert not site.models.exists() and not site.hub.fetched(".safetensors")
    assert json.loads(site.lock.read_text())["models"] == {}


def test_a_token_whose_owner_did_not_agree(site: Site) -> None:
    site.hub.repos[f"models/{LLAMA}"].granted = False
    assert site.stage() == 15
    assert "agree to the llama3 licence" in site.error


def test_a_token_that_may_not_read_gated_files(site: Site) -> None:
    repo = site.hub.repos[f"models/{LLAMA}"]
    repo.granted, repo.code = False, ""
    assert site.stage() == 15
    assert "refuses this token (403)" in site.error and "public gated repos" in site.error


def test_a_token_that_is_no_good(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert site.stage() == 15 and "refuses this token (401)" in site.error and "hf_expired" not in site.error


def test_a_missing_repository(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.stage("--model", "Qwen/Qwen9-1B") == 15 and "no such repository (404)" in site.error
    monkeypatch.delenv("HF_TOKEN")
    site.hub.repos[f"models/{LLAMA}"].gated = False
    assert site.stage("--model", "Qwen/Qwen9-1B") == 15
    assert "wants a token (401), or there is no such repository" in site.error


def test_the_token_goes_to_the_hub_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to where large files are, not onto the terminal, not into a file."""
    monkeypatch.delenv("HF_TOKEN")
    (site.root / "no-token").write_text(TOKEN)  # of `hf auth login`
    assert site.stage() == 0, site.error
    shown = {path.split("/")[1]: token for _, path, _, token in site.hub.requests}
    assert shown["api"] and shown["meta-llama"] and not shown["elsewhere"]
    assert TOKEN not in site.out + site.error
    (site.root / "no-token").unlink()
    for path in site.root.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


# -- room, kills, company


def test_too_little_space_is_noticed_before_anything_is_fetched(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    assert site.stage() == 12
    assert "10.0 kB free" in site.error and "13.2 kB are to be fetched" in site.error, "both folders' files"
    assert not site.hub.fetched(".safetensors")
    monkeypatch.setattr(staging_disk, "MARGIN", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20_000))
    assert site.stage() == 0


def test_a_disk_that_is_full_all_the_same(site: Site, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            staging_hub.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(122, "Quota"))
        )
        assert site.stage() == 12 and "Quota" in site.error
    assert not (site.models / "Qwen3-32B").exists()
    assert site.stage() == 0


WITH_LOCK = """
import pathlib, sys
import jobs.staging_hub
import jobs.staging_lock
from jobs.__main__ import main

jobs.staging_hub.CHUNK, jobs.staging_hub.SILENT_SECONDS = 10_000, 2.0
jobs.staging_lock.LOCK = pathlib.Path(sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""


def start(site: Site) -> subprocess.Popen[str]:
    """A staging of its own process that has begun with the first shard, and gets no more of it."""
    site.hub.repos[f"models/{QWEN}"].push(model_files("long", 320_000))
    site.hub.hold[SHARD] = 100_000
    command = [sys.executable, "-c", WITH_LOCK, str(site.lock), "stage", "--scenario", "one-client"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and all that they start, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert site.hub.held.wait(60)
    (part,) = site.models.rglob(f"{SHARD}.part")
    while part.stat().st_size < 80_000 and process.poll() is None:
        pass
    return process


def test_a_killed_staging_goes_on_where_it_was(site: Site) -> None:
    process = start(site)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    site.hub.hold.clear()
    site.hub.release.set()
    assert not (site.models / "Qwen3-32B").exists()
    first = site.hub.repos[f"models/{QWEN}"].main
    site.hub.repos[f"models/{QWEN}"].push(model_files("newer"))
    site.hub.requests.clear()
    assert site.stage() == 0, site.error
    assert site.entry()["revision"] == first, "the commit that the killed one had begun with"
    resumed = [asked for _, path, asked, _ in site.hub.requests if path.endswith(f"{first}/{SHARD}")]
    assert len(set(resumed)) == 1 and 80_000 <= int(resumed[0][6:-1]) <= 100_000


def test_an_interrupted_staging_ends_soon_although_the_hub_is_silent(site: Site) -> None:
    process = start(site)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error == "interrupted; the same command goes on where it was\n"
    assert not (site.models / "Qwen3-32B").exists() and list(site.models.rglob(f"{SHARD}.part"))
    assert not list(site.models.rglob("*.lease")), "the next one need not wait"


def test_two_stagings_of_one_model_do_not_meet(site: Site) -> None:
    (site.models / ".staging").mkdir(parents=True)
    with lease(site.models / ".staging" / "Qwen3-32B.lease"):
        assert site.stage() == 9
    assert f"process {os.getpid()}" in site.error and "stages Qwen/Qwen3-32B" in site.error
    assert site.stage() == 0


def test_two_stagings_write_into_one_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text('{"models": {}, "datasets": {}}')
    names = [f"a/{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: write_locked("model", name, lock_module.Locked(), path), names))
    assert sorted(read_lock(path).models) == sorted(names)


def test_the_lock_keeps_other_entries(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text('{"models": {"a/b": {"revision": null, "files": {}}}, "datasets": {}}')
    write_locked("model", "c/d", lock_module.Locked(revision="0" * 40), path)
    assert list(read_lock(path).models) == ["a/b", "c/d"]
    assert list(tmp_path.iterdir()) == [path], "nothing else is left beside it"
