"""A matrix on a real cluster: submitted, looked at, gone on with, collected."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.cluster.harness import Suite, wait_for

MATRIX = """
tier: lab
size: tiny
scenarios: [one-client]
seeds: [0]
settings: {rounds: 1}
arms:
  lada: {method: lada}
  random: {method: lada, settings: {method.select.mode: random}, replays: {method.select.replay: lada}}
contrasts: [[lada, random]]
"""


def test_a_matrix_is_submitted_run_by_run_and_ends_in_tables(suite: Suite, tmp_path: Path) -> None:
    runs = suite.runs("matrix")
    path = suite.folder / "build" / "test-clusters" / f"{runs.parent.name}-matrix.yaml"
    suite.command("mkdir", "-p", str(path.parent))
    path.write_text(MATRIX)
    path.chmod(0o644)
    place = (str(path), "--runs", str(runs), "--cluster", "devcluster")

    def states() -> Counter[str]:
        shown = json.loads(suite.jobs("matrix-status", *place, "--json").stdout)
        return Counter(shown["states"])

    assert states() == {"to do": 2}
    said = suite.jobs("matrix", *place).stdout
    assert "2 runs: 0 done, 1 submitted now, 1 still to submit" in said, (
        "the control waits for what it replays"
    )
    assert "0 submitted now" in suite.jobs("matrix", *place).stdout, "again changes nothing"
    wait_for(lambda: states()["done"] == 1, "the end of the first run")
    assert "1 done, 1 submitted now, 0 still to submit" in suite.jobs("matrix", *place).stdout
    wait_for(lambda: states()["done"] == 2, "the end of both runs")
    assert "2 done, 0 submitted now, 0 still" in suite.jobs("matrix", *place).stdout

    # Tables are made where torch is: here, not on the cluster user's login node.
    command = [
        sys.executable,
        "-m",
        "lada",
        "collect",
        str(path),
        "--runs",
        str(runs),
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=suite.folder, capture_output=True, text=True, check=True)
    assert "of 2 of 2 runs" in done.stdout
    assert (tmp_path / f"{path.stem}.csv").is_file()
