"""What a run says of the checkout that made it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lada import provenance


def test_results_are_no_change_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LADA_GIT_STATUS", "LADA_GIT_SHA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/table2.csv"):
        (tmp_path / name).write_text("1\n")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm one"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    (tmp_path / "results" / "table2.csv").write_text("2\n")
    (tmp_path / "results" / "table3.csv").write_text("new\n")
    found = provenance.host_facts()
    assert len(found["git"]) == 40 and found["git_dirty"] is False
    (tmp_path / "code.py").write_text("2\n")
    assert provenance.host_facts()["git_dirty"] is True
