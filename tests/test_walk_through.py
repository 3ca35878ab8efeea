"""README's walk-through, executed: the toy method as it stands there, with the commands that stand there."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lada.records import Response, read_jsonl
from lada.rundir import RunDir
from tests.smallest_models import SETTINGS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.split("### A method of your own", 1)[1].split("\n## ")[0]


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the new file in it, and nothing else changed."""
    folder = tmp_path_factory.mktemp("walk")
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("lada", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", folder)
    path = re.search(r"`(lada/methods/\w+\.py)`; nothing else is edited", SECTION)
    assert path is not None
    (folder / path[1]).write_text(block("python"), encoding="utf-8")
    return folder


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_method_is_one_short_file_in_house_style(checkout: Path) -> None:
    assert len(block("python").splitlines()) < 60
    path = "lada/methods/shortest.py"
    for tool in (("ruff", "check"), ("ruff", "format", "--check")):
        done = call(checkout, "-m", *tool, path)
        assert done.returncode == 0, done.stdout


def test_its_options_are_listed_with_their_meaning(checkout: Path) -> None:
    assert "make methods" in block("sh")
    shown = call(checkout, "-m", "lada", "methods").stdout
    assert "shortest: Shortest: clients learn the LLM's shortest reasoning texts" in shown
    assert re.search(r"method\.share=0\.5 +of the LLM's texts, the shortest of which are learnt", shown)
    wrong = call(checkout, "-m", "lada", "plan", "--method", "shortest", "--set", "method.shares=1")
    assert wrong.returncode == 2 and "did you mean 'share'" in wrong.stderr
    unknown = call(checkout, "-m", "lada", "plan", "--method", "longest")
    assert unknown.returncode == 2 and "shortest" in unknown.stderr


@pytest.mark.slow
def test_its_types_are_right(checkout: Path) -> None:
    done = call(checkout, "-m", "mypy", "lada/methods/shortest.py")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_it_runs_and_learns_what_it_says(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smallest_models: Path
) -> None:
    command = re.search(r"^make run METHOD=shortest SIZE=tiny SET=(\S+)$", block("sh"), re.MULTILINE)
    assert command is not None
    monkeypatch.setenv("LADA_LAB_WEIGHTS", str(smallest_models))
    settings = " ".join((command[1], *SETTINGS))
    run_line = ("-m", "lada", "run", "--method", "shortest", "--size", "tiny", "--scenario", "one-client")
    for runs in ("first", "second"):
        done = call(checkout, *run_line, "--runs", str(tmp_path / runs), "--set", settings)
        assert done.returncode == 0, done.stderr
    found = [next((tmp_path / name).glob("one-client-shortest-*")) for name in ("first", "second")]
    first, second = map(RunDir, found)
    assert first.metrics_csv.read_bytes() == second.metrics_csv.read_bytes()

    message = first.root / "exchange" / "server" / "all" / "r01-respond" / "responses.jsonl"
    sent = read_jsonl(Response, message)
    with first.metrics_csv.open(newline="") as file:
        rows = {(r["party"], r["round"], r["metric"]): float(r["value"]) for r in csv.DictReader(file)}
    assert rows["client-1", "1", "trained_samples"] == round(0.25 * len(sent))
    assert {("client-1", "2", "accuracy"), ("server", "0", "accuracy")} <= rows.keys()
