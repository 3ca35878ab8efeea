"""A small matrix, run for real: what is missing is run again, what finished is collected, nothing is lost."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lada.__main__ import main
from lada.answers import extract_letter
from lada.layers import read_yaml
from lada.matrix.collect import collect
from lada.matrix.definition import Matrix
from lada.matrix.local import find_runs, run_matrix
from lada.matrix.rows import read_rows
from lada.matrix.run_configs import flat, read_configs
from lada.records import Item, SampleLog, read_jsonl
from lada.rundir import RunDir
from tests.smallest_models import SETTINGS

pytestmark = pytest.mark.slow

ARMS = {
    "standalone": {"method": "standalone"},
    "lada": {"method": "lada"},
    "random": {
        "method": "lada",
        "settings": {"method.select.mode": "random"},
        "replays": {"method.select.replay": "lada"},
    },
}


def test_a_matrix_runs_goes_on_and_is_collected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, said = tmp_path / "runs", list[str]()
    small = dict(setting.split("=", 1) for setting in SETTINGS)
    content = {
        "size": "tiny",
        "scenarios": ["1"],
        "seeds": [0],
        "arms": ARMS,
        "contrasts": [["lada", "standalone"]],
        # Enough for some that one arm answers rightly and the other does not.
        "settings": {**small, "data.num_test": 24},
    }
    found = Matrix.model_validate(content, strict=False)
    assert run_matrix(found, runs, jobs=2, report=said.append) == []
    assert said[0] == "3 runs: 0 finished, 3 to do, 2 at a time"
    assert said[-1].startswith("3/3 done: random, scenario 1") and "left" in said[-1]
    lada, random = (run for run in find_runs(found, runs) if run.cell.arm != "standalone")
    for stage in ("r01-learn", "r02-learn"):
        counts = [
            len(read_jsonl(SampleLog, run.folder / "parties" / "client-1" / stage / "samples.jsonl"))
            for run in (lada, random)
        ]
        assert counts[0] == counts[1] > 0, "the control draws as many as the filter took"

    shutil.rmtree(random.folder)
    said.clear()
    assert run_matrix(found, runs, jobs=1, report=said.append) == []
    assert said[0] == "3 runs: 2 finished, 1 to do, 1 at a time"

    rows = collect(found, find_runs(found, runs))
    assert {row.arm for row in rows} == {"standalone", "lada", "random"}
    mine = {
        (row.metric, row.round, row.party): row.value
        for row in rows
        if row.arm == "lada" and (row.metric.startswith("paired") or row.metric == "accuracy")
    }
    base = {row.party: row.value for row in rows if (row.arm, row.metric) == ("standalone", "accuracy")}
    for party in ("client-1", "server"):
        gap = mine["accuracy", 2, party] - base[party]
        assert mine["paired/standalone", 2, party] == pytest.approx(gap, abs=1e-12)

    path = tmp_path / "mine.yaml"
    path.write_text(found.model_dump_json())
    arguments = ["collect", str(path), "--runs", str(runs), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert f"{len(rows)} rows of 3 of 3 runs" in capsys.readouterr().out
    assert [row.value for row in read_rows(tmp_path / "out" / "mine.csv")] == pytest.approx(
        [row.value for row in rows], rel=1e-8
    )
    with (tmp_path / "out" / "mine-runs.csv").open(newline="") as file:
        made = list(csv.DictReader(file))
    assert {row["run_id"] for row in made} == {run.folder.name for run in find_runs(found, runs)}
    assert {(row["size"], row["seed"], row["scenario"]) for row in made} == {("tiny", "0", "1")}
    assert len({row["code"] for row in made}) == 1 and all(len(row["weights"]) == 16 for row in made)

    configs = read_configs(tmp_path / "out" / "mine-configs.json")
    assert configs.keys() == {row["run_id"] for row in made}
    assert all(configs[run.folder.name] == flat(read_yaml(run.folder / "run.yaml")) for run in (lada, random))

    lines = (tmp_path / "out" / "mine-cases.jsonl").read_text(encoding="utf-8").splitlines()
    check_cases([json.loads(line) for line in lines], lada.folder)

    ledger = random.folder / "ledger.jsonl"
    said_last = ledger.read_bytes()
    ledger.write_bytes(said_last[: said_last.rindex(b'{"')])
    assert not find_runs(found, runs)[-1].finished, "its results may be those of an earlier stage"
    assert run_matrix(found, runs, jobs=1, report=said.append) == [] and find_runs(found, runs)[-1].finished

    (lada.folder / "parties" / "server" / "r02-learn" / "manifest.json").unlink()
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) == 4 and main(arguments) == 0
    (aside,) = (tmp_path / "out" / "replaced").iterdir()
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert f"holds runs that are not here: it is in {aside} now" in capsys.readouterr().err
    assert main(arguments) == 0 and len(list(aside.parent.iterdir())) == 1, "nothing is lost this time"
    assert {row.arm for row in collect(found, find_runs(found, runs))} == {"standalone", "random"}


def check_cases(cases: list[dict[str, Any]], folder: Path) -> None:
    """Each is a test question that one arm answered rightly and the other wrongly, with what both said."""
    assert cases
    for case in cases:
        assert {case["right"], case["wrong"]} == {"lada", "standalone"}
        items = {one.id: one for one in read_jsonl(Item, RunDir(folder).data(case["party"], "test"))}
        item = items[case["id"]]
        assert (case["question"], case["gold"]) == (item.question, item.answer)
        said = {answer["arm"]: answer for answer in case["answers"]}
        assert said[case["right"]]["correct"] and said[case["right"]]["letter"] == case["gold"]
        assert not said[case["wrong"]]["correct"]
        assert all(extract_letter(one["text"], item.options) == one["letter"] for one in said.values())
        assert said[case["right"]]["why"] != "no letter found"
