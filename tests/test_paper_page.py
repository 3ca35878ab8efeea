"""`make plan` of the paper tier: one page, its last line the total; JSON for machines; refusals."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import lada.__main__
from jobs import plan_view
from jobs.__main__ import main
from jobs.cluster import Cluster
from jobs.paper_page import WIDTH

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods are asked here, not in a process of their own (that: test_plan_view.py): seconds each."""

    def ask(cluster: Cluster, arguments: Sequence[str], files: Sequence[Path]) -> str:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            assert lada.__main__.main(arguments) == 0
        return text.getvalue()

    monkeypatch.setattr(plan_view, "_ask_lada", ask)


def plan(tmp_path: Path, *arguments: str, scenario: str = "1", cluster: str = "a800") -> int:
    asked = ["--scenario", scenario, "--tier", "paper", "--size", "paper", "--dataset", "mathinstruct"]
    return main(["plan", *asked, "--cluster", cluster, "--runs", str(tmp_path / "runs"), *arguments])


def total(shown: str) -> int:
    found = re.fullmatch(r"total: (\d+) GPU-hours", shown.splitlines()[-1])
    assert found, shown.splitlines()[-1]
    return int(found[1])


@pytest.mark.parametrize("scenario", ["1", "2", "3", "4"])
def test_one_page_whose_last_line_is_the_total(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(tmp_path, scenario=scenario) == 0
    shown = capsys.readouterr().out
    assert 40 < total(shown) < 200
    assert len(shown.splitlines()) <= 66 and max(map(len, shown.splitlines())) <= WIDTH, "a page"
    assert shown.startswith(f"Scenario {scenario}: lada on mathinstruct, LoRA of rank 16, one seed")
    assert "zero-shot, 5 rounds:" in shown and "one-shot, 5 rounds:" in shown
    assert "sbatch" not in shown and "NOT MODELLED" not in shown
    assert not (tmp_path / "runs").exists()


def test_a_stage_beyond_its_time_limit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "hasty.yaml"
    text = (ROOT / "configs" / "clusters" / "a800.yaml").read_text(encoding="utf-8")
    site.write_text(text.replace("minutes: 1440", "minutes: 15"))
    assert plan(tmp_path, "--shots", "0", cluster=str(site)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"server: a stage takes 0\.[67] h and may take 0\.25 h", shown)
    assert "client-1: a stage" not in shown


def test_machines_get_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path) == 0
    shown = total(capsys.readouterr().out)
    assert plan(tmp_path, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    found = content["estimate"]
    assert found["total_gpu_hours"] == shown
    assert [one["shots"] for one in found["settings"]] == [0, 1]
    for one in found["settings"]:
        assert sum(stage["gpu_hours"] for stage in one["stages"]) == pytest.approx(one["gpu_hours"])
        assert len(one["stages"]) == len(content["stages"]) == 44
        assert {party["model"] for party in one["parties"]} > {"google/gemma-2-27b", "Qwen/Qwen3-32B"}
        for party in one["parties"]:
            for kind in ("training_gb", "generation_gb"):
                assert 0 < sum(party[kind].values()) <= party["room_gb"]
    assert found["planning"]["accelerator"]["name"] == "A800-80GB"


def test_one_setting_another_method_and_the_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(tmp_path, "--shots", "1", "--method", "standalone", "--full") == 0
    shown = capsys.readouterr().out
    assert "zero-shot" not in shown and "one-shot, 5 rounds:" in shown
    assert shown.count("The batch script of") == 4 and "#SBATCH" in shown
    assert total(shown) < 10
    page = shown[shown.index("Scenario 1: standalone") :]
    row = next(line for line in page.splitlines() if line.startswith("server"))
    assert "generation" in row, "the server of this method is never trained"


def test_what_cannot_fit_ends_with_what_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, "--set", "lora=null") == 2
    found = capsys.readouterr()
    assert found.out == "" and "does not fit the GPUs that it asks for" in found.err
    assert "client-2, google/gemma-2-27b: training takes" in found.err and "it would fit with" in found.err


def test_a_cluster_that_says_nothing_of_its_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare.yaml"
    bare.write_text("resources: [{up_to: 80, gpus: 8}]\n")
    assert plan(tmp_path, cluster=str(bare)) == 0
    shown = capsys.readouterr().out
    assert "By their time limits at most" in shown and "no `planning`" in shown


def test_assumptions_are_overridden_in_the_cluster_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "slow.yaml"
    text = (ROOT / "configs" / "clusters" / "a800.yaml").read_text(encoding="utf-8")
    site.write_text(text.replace("training: 0.4", "training: 0.1").replace("tflops: 312.0", "tflops: 156.0"))
    assert plan(tmp_path) == 0
    usual = total(capsys.readouterr().out)
    assert plan(tmp_path, cluster=str(site)) == 0
    shown = capsys.readouterr().out
    assert total(shown) > 1.5 * usual and "156 TFLOP/s, of which training reaches 10%" in " ".join(
        shown.split()
    )
    site.write_text(text.replace("memory_gb: 80.0, reserve", "memory_gb: 30.0, reserve"))
    assert plan(tmp_path, cluster=str(site)) == 2
    assert "and there are 24" in capsys.readouterr().err


def test_make_names_the_real_questions_for_this_tier() -> None:
    command = ["make", "-n", "plan", "SCENARIO=2", "CLUSTER=a800", "TIER=paper"]
    paper = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (
        "--scenario 2" in paper and "--dataset mathinstruct --size paper" in paper and "--tier paper" in paper
    )
    lab = subprocess.run([*command[:-1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--dataset lab-math --size quick" in lab
