"""metrics.csv: rebuilt from commits alone, sorted, the same bytes whenever it is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada.errors import DataError
from lada.layers import read_run
from lada.ledger import Ledger
from lada.manifest import Outbox, Payload
from lada.plan import read_plan
from lada.results import COLUMNS, read_metrics, write_metrics
from lada.rundir import RunDir, Stage
from tests.fake_runs import IDS, commit_stage, drive, make_run

pytestmark = pytest.mark.usefixtures("no_fsync")


def write(run: RunDir) -> bytes:
    write_metrics(run, read_run(run.root), read_plan(run))
    return run.metrics_csv.read_bytes()


def value(run: RunDir, number: int, party: str, metric: str) -> float:
    rows = [
        row
        for row in read_metrics(run.metrics_csv)
        if (row["round"], row["party"], row["metric"]) == (number, party, metric)
    ]
    assert len(rows) == 1, metric
    return float(rows[0]["value"])


def test_rows_are_the_stages_metrics_bytes_and_diagnostics(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    drive(run)
    assert value(run, 2, "client-1", "step_learn") == 1.0
    folder = run.commit(Stage(1, "learn", "client-1"))
    ids = (folder / "public" / "server" / "ids.jsonl").stat().st_size
    assert value(run, 1, "client-1", "bytes_sent/learn/server/ids") == ids
    adapters = (folder / "public" / "all" / "adapter.safetensors").stat().st_size
    assert value(run, 1, "client-1", "bytes_sent/learn/all/adapters") == adapters
    assert value(run, 1, "server", "bytes_sent/respond/client-1/ids") == ids
    head = read_metrics(run.metrics_csv)[0]
    assert tuple(head) == COLUMNS
    assert (head["tier"], head["scenario"], head["method"], head["seed"]) == ("lab", "one-client", "lada", 0)


def test_diagnostics_are_joined_with_the_sealed_answers(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    commit_stage(run, Stage(1, "learn", "client-1"))
    write(run)
    assert value(run, 1, "client-1", "filter/server/chosen_right") == 1.0
    assert value(run, 1, "client-1", "filter/server/coverage") == pytest.approx(1 / len(IDS))


def test_the_same_commits_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    runs = []
    for number, order in enumerate((1, -1)):
        run = make_run(tmp_path / str(number))
        stages = [stage for group in read_plan(run).groups() for stage in group]
        for stage in stages[::order]:
            commit_stage(run, stage, attempt=f"{number}-a")
        Ledger(run.ledger_jsonl).write("committed", stage=f"noise-{number}", seconds=number)
        runs.append(write(run))
    assert runs[0] == runs[1]
    lines = [line.split(",")[7:11] for line in runs[0].decode().splitlines()[1:]]
    assert len(lines) > 20
    keys = [(int(number), party, metric) for number, party, _, metric in lines]
    assert keys == sorted(keys)


def test_numbers_keep_every_bit(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    outbox = Outbox(
        private={"metrics.json": Payload("metrics", 1, b'{"third": 0.3333333333333333, "tiny": 5e-324}')}
    )
    commit_stage(run, Stage(0, "prepare", "server"), outbox=outbox)
    write(run)
    assert value(run, 0, "server", "third") == 1 / 3
    assert value(run, 0, "server", "tiny") == 5e-324


def test_what_is_not_committed_has_no_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert write(run).decode() == ",".join(COLUMNS) + "\n"
    assert read_metrics(run.metrics_csv) == []


def test_times_stand_in_their_own_file(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    drive(run)
    lines = run.timings_csv.read_text().splitlines()
    assert lines[0] == "stage,seconds"
    assert "server/r00-prepare,0.25" in lines
    assert len(lines) == 1 + 10
    assert b"0.25" not in run.metrics_csv.read_bytes()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "columns"),
        ("a,b\n1,2\n", "columns"),
        (",".join(COLUMNS) + "\nrun,lab\n", "line 2"),
        (",".join(COLUMNS) + "\nrun,lab,1,d,0,m,x,1,server,m,accuracy,0.5\n", "line 2"),
        (",".join(COLUMNS) + "\nrun,lab,1,d,0,m,0,1,server,m,accuracy,\n", "line 2"),
    ],
)
def test_another_or_a_cut_file_is_a_data_error(content: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=part):
        read_metrics(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_metrics(tmp_path / "none.csv")
