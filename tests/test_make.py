"""Makefile and README: every target runs, every command that README shows is one that works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lada.matrix.definition import read_matrix

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDY = (ROOT / "results" / "STUDY.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE)
TINY = "SIZE=tiny SCENARIO=one-client SET='rounds=1 data.num_train=16 data.num_test=8 data.num_public=16'"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout with this environment's packages."""
    folder = tmp_path_factory.mktemp("clone") / "lada"
    skipped = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=skipped)
    venv = Path(os.environ.get("VIRTUAL_ENV", ROOT / ".venv"))
    (folder / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / name).symlink_to(venv / name)
    (folder / ".venv" / ".ready").touch()
    return folder


def make(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYTEST"))}
    return subprocess.run(
        f"make {command}",
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_is_the_default_and_lists_every_target(clone: Path) -> None:
    shown = make(clone, "").stdout
    for target in TARGETS:
        assert f"make {target} " in shown
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony and set(phony[1].split()) == set(TARGETS)


def test_setup_is_a_no_op_where_it_is_done(clone: Path) -> None:
    done = make(clone, "setup")
    assert done.returncode == 0 and "make-venv" not in done.stdout


def test_stage_means_the_paper_tier_s_data_unless_told_otherwise(clone: Path) -> None:
    def named(more: str) -> str:
        return (
            make(clone, f"-n stage CLUSTER=a800 {more}")
            .stdout.partition("--dataset")[2]
            .partition("--")[0]
            .strip()
        )

    assert named("") == "mathinstruct" == named("SCENARIO=1")
    assert named("DATASET=cot-collection") == "cot-collection"
    assert named("DATASET='mathinstruct cot-collection'") == "mathinstruct cot-collection"
    assert named("DATASET=") == "", "models alone"
    assert "--dataset lab-math" in make(clone, "-n submit CLUSTER=a800").stdout, (
        "a run's default is the lab's"
    )


@pytest.mark.slow
def test_run_prints_its_command_resumes_and_shows(clone: Path) -> None:
    first = make(clone, f"run {TINY}")
    assert first.returncode == 0, first.stderr
    assert "-m lada run" in first.stdout and "Run folder" in first.stdout and "±" in first.stdout
    again = make(clone, f"run {TINY}")
    assert "Nothing is left to do" in again.stdout
    run = next((clone / "runs").glob("*/run.yaml")).parent.relative_to(clone)
    assert "±" in make(clone, f"show RUN={run}").stdout


@pytest.mark.slow
def test_run_through_the_local_launcher(clone: Path) -> None:
    done = make(clone, f"run LAUNCHER=local METHOD=standalone RUNS=local-runs {TINY}")
    assert done.returncode == 0, done.stderr
    assert "-m jobs.drive" in done.stdout and "committed" in done.stdout and "±" in done.stdout


def test_methods(clone: Path) -> None:
    assert "method.beta=0.1" in make(clone, "methods").stdout


def test_lint_runs_all_three_checks() -> None:
    """CI runs `make lint` itself; here it is enough that the target is those commands."""
    shown = subprocess.run(
        ["make", "-n", "lint"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r"bin/(\w+)", shown) == ["ruff", "ruff", "mypy"]


@pytest.mark.parametrize(("asked", "jobs"), [("", None), ("TIER=paper", 1), ("PARALLEL=3", 3)])
def test_small_runs_go_side_by_side(asked: str, jobs: int | None, clone: Path) -> None:
    shown = make(clone, f"-n matrix MATRIX=table5 CLUSTER= {asked}").stdout
    assert f"--jobs {jobs or min(4, len(os.sched_getaffinity(0)))}\n" in re.sub(r" +\n", "\n", shown)


def test_test_and_study_targets_call_what_they_say() -> None:
    shown = subprocess.run(
        ["make", "-n", "test", "bench", "lab-models", "study"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for command in ("-m pytest", "-m tests.bench", "-m lada.lab", "-m lada matrix"):
        assert command in shown
    (names,) = re.findall(r"for matrix in (.*); do", shown)
    assert {read_matrix(name).tier for name in names.split()} == {"lab"}


def test_lab_models_refuses_an_unknown_name(clone: Path) -> None:
    done = make(clone, "lab-models MODELS=gpt-5")
    assert done.returncode != 0 and "gemma-2-2b" in done.stderr


def test_study_table_reads_the_committed_results(clone: Path) -> None:
    assert "<!-- lab-study -->\n**Scenario 1" in README and "<!-- lab-study-contrasts -->\n| arm" in README
    assert "<!-- lab-tuning -->\n| arm |" in STUDY and "<!-- lab-threshold -->\n**Scenario 1" in STUDY
    done = make(clone, "study-table STUDY_RUNS=none")
    assert done.returncode == 0 and "holds no finished run of lab-study: nothing is written" in done.stdout
    for name, page in (("README.md", README), ("results/STUDY.md", STUDY)):
        written = (clone / name).read_text(encoding="utf-8")
        assert written == page, f"tables of {name} are not what the data say"


@pytest.mark.slow
def test_a_matrix_is_run_listed_and_collected(clone: Path, smallest_models: Path) -> None:
    (clone / ".venv" / ".ready").touch()  # another test may have locked the versions again
    (clone / "configs" / "matrices" / "mine.yaml").write_text(
        "size: tiny\nscenarios: [one-client]\nseeds: [0]\narms: {standalone: {method: standalone}}\n"
        "settings: {data.num_train: 8, data.num_test: 4, data.num_public: 16}\n"
    )
    run = make(clone, f"matrix MATRIX=mine RUNS=grid LADA_LAB_WEIGHTS={smallest_models}")
    assert run.returncode == 0 and "1/1 done: standalone, scenario one-client" in run.stdout
    assert make(clone, "collect MATRIX=mine RUNS=grid").returncode == 0
    assert (clone / "results" / "lab" / "mine.csv").is_file()
    for left in ("results/lab/mine.csv", "results/lab/mine-runs.csv", "configs/matrices/mine.yaml"):
        (clone / left).unlink()


def test_lock_writes_what_is_installed(clone: Path) -> None:
    before = (clone / "containers" / "requirements.lock").read_text()
    assert make(clone, "lock").returncode == 0
    after = (clone / "containers" / "requirements.lock").read_text()
    assert [line.split("==")[0] for line in after.splitlines()] == [
        line.split("==")[0] for line in before.splitlines()
    ]


@pytest.mark.parametrize("there", [True, False])
def test_an_old_python_is_named_where_it_is_needed(there: bool, tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    if there:
        (tmp_path / "venv" / ".ready").touch()
    done = make(ROOT, f"{tmp_path}/venv/.host VENV={tmp_path}/venv PYTHON=/bin/false")
    assert (done.returncode == 0) == there
    assert ("PYTHON=<path>" in done.stderr) != there, "the first make was told another one"


def test_clean_removes_the_environment_and_keeps_runs(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (".venv", "runs", "lada/__pycache__"):
        (tmp_path / name).mkdir(parents=True)
    assert make(tmp_path, "clean").returncode == 0
    assert (tmp_path / "runs").is_dir()
    assert not (tmp_path / ".venv").exists() and not (tmp_path / "lada" / "__pycache__").exists()


def test_readme_shows_only_commands_that_exist() -> None:
    for target in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert target in TARGETS
    assert {"run", "test"} <= set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
    for path in re.findall(r"`((?:lada|configs|containers|results)/[\w./-]+)`", README):
        own = path == "lada/methods/shortest.py"  # the walk-through's, which its reader makes
        assert (ROOT / path).exists() != own, f"README names {path}"


def test_readme_makes_no_claim_without_base_and_self_rationale() -> None:
    """Issue A: no table shows LaDa over Standalone without the base model and `self_rationale` beside it."""
    section = README.split("## Results", 1)[1].split("\n## ", 1)[0]
    first = next(line for line in section.splitlines() if line.strip())
    assert "no real weights were run" in first.lower()
    assert "base model" in section and "self_rationale" in section
    assert "answer_only" in section and "standalone" in section.lower()


def test_ci_calls_the_readme_s_test_command() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^make test$", text, re.MULTILINE) and "set -euo pipefail" in text


@pytest.mark.slow
def test_views_of_a_run(clone: Path) -> None:
    """Every target that looks at a run, on one that `make run` made; JSON=1 prints one object alone."""
    (clone / ".venv" / ".ready").touch()  # another test may have locked the versions again
    assert make(clone, f"run RUNS=looked-at METHOD=standalone {TINY}").returncode == 0
    for target in ("status", "cost", "gc"):
        found = json.loads(make(clone, f"{target} RUNS=looked-at JSON=1").stdout)
        assert Path(found["run_dir"]).parent == clone / "looked-at", target
        shown = make(clone, f"{target} RUNS=looked-at")
        assert shown.returncode == 0 and f"-m jobs {target}" in shown.stdout
    assert json.loads(make(clone, "status RUNS=looked-at JSON=1").stdout)["state"] == "done"
    assert make(clone, "watch RUNS=looked-at").returncode == 0
    shown = make(clone, "logs RUNS=looked-at PARTY=client-1 ROUND=0 STEP=prepare").stdout
    assert "committed" in shown and "test before local training" in shown
    planned = json.loads(make(clone, f"plan CLUSTER=a800 RUNS=nowhere JSON=1 {TINY}").stdout)
    assert planned["cluster"] == "a800" and not (clone / "nowhere").exists()
    doctor = make(clone, "doctor CLUSTER=a800 RUNS=looked-at JSON=1")
    assert doctor.returncode != 0, "there is no image"
    assert json.loads(doctor.stdout)["ok"] is False
