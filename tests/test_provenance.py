"""What a run says of the checkout that made it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lada import provenance
from lada.errors import ChangedError
from lada.rundir import RunDir


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


@pytest.mark.parametrize("content", ["", "{not json", "[1]", "\xff"])
def test_what_is_no_provenance_is_named(content: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert provenance.recorded(run) == {}
    run.provenance_json.write_bytes(content.encode("latin-1"))
    with pytest.raises(ChangedError, match=r"provenance\.json .*JSON.*FRESH=1"):
        provenance.recorded(run)
