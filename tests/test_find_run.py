"""Which run a command means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.select import find_run
from lada.errors import ConfigError


def make(runs: Path, name: str, *, age: float) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    path = folder / "run.yaml"
    path.write_text("")
    os.utime(path, (1e9 - age, 1e9 - age))
    return folder


def test_the_newest_is_meant_but_none_that_was_set_aside(tmp_path: Path) -> None:
    make(tmp_path, "a", age=10)
    newest = make(tmp_path, "b", age=5)
    make(tmp_path, "b.old-1", age=0)
    assert find_run(None, str(tmp_path)).root == newest
    (tmp_path / "no-run").mkdir()
    assert find_run(None, str(tmp_path)).root == newest


def test_a_run_is_named_by_folder_or_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "runs", "a", age=0)
    assert find_run(str(folder), "elsewhere").root == folder
    assert find_run("a", str(tmp_path / "runs")).root == folder
    monkeypatch.chdir(tmp_path)
    assert find_run("runs/a", "runs").root == folder, "absolute, wherever it is asked from"


def test_no_such_run_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run in"):
        find_run(None, str(tmp_path))
    with pytest.raises(ConfigError, match="holds no run"):
        find_run("x", str(tmp_path))
    for number in range(22):
        make(tmp_path, f"run-{number:02d}", age=0)
    with pytest.raises(ConfigError, match=r"run-00, run-01.* and 2 more"):
        find_run("x", str(tmp_path))
