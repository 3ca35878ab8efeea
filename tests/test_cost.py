"""`make cost`: what attempts used, from Slurm's accounts as they really read, and from the ledger."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.accounts import COLUMNS, allocated, asked, parse_accounts, used
from jobs.cost import add_up, by_party_and_round, fitting_unit
from jobs.failures import ExitRecord
from jobs.stage_job import exit_file, write_exit
from lada.ledger import Ledger
from lada.rundir import RunDir, Stage
from tests.fake_runs import commit_stage, drive, good, make_run

pytestmark = pytest.mark.usefixtures("no_fsync")
PREPARE, SERVER = Stage(0, "prepare", "client-1"), Stage(0, "prepare", "server")
SACCT = """\
50|RUNNING|75|billing=1,cpu=1,mem=512M,node=1|2026-11-21T00:58:00|2026-11-21T00:58:00
51|COMPLETED|24|billing=1,cpu=1,gres/gpu=2,mem=3G,node=1|2026-11-21T00:58:01|2026-11-21T00:58:03
52|REQUEUED|11|billing=1,cpu=4,gres/gpu=1,mem=2G,node=1|2026-11-21T00:58:01|2026-11-21T00:58:03
52|COMPLETED|26|billing=1,cpu=4,gres/gpu=1,mem=2G,node=1|2026-11-21T00:58:14|2026-11-21T00:58:25
6|CANCELLED by 1001|0||2026-11-21T00:32:45|Unknown
"""
"""What sacct of Slurm 22.05 said of a run whose client was requeued."""


def test_columns_are_those_that_sacct_is_asked_for() -> None:
    records = parse_accounts(SACCT)
    assert len(records) == 5 and set(records[0]) == set(COLUMNS)
    assert records[4]["State"] == "CANCELLED by 1001"
    assert parse_accounts("sacct: warning\n") == []


@pytest.mark.parametrize(
    ("tres", "gpus", "cpus"),
    [
        ("billing=1,cpu=4,gres/gpu=2,mem=500M,node=1", 2, 4),
        ("cpu=64,gres/gpu:a800=8,gres/gpu=8,mem=512G,node=2", 8, 64),
        ("billing=1,cpu=1,mem=512M,node=1", 0, 1),
        ("", 0, 0),
    ],
)
def test_allocations(tres: str, gpus: int, cpus: int) -> None:
    assert allocated(tres) == (gpus, cpus)


@pytest.mark.parametrize(
    ("resources", "gpus", "cpus"),
    [
        ({"nodes": 2, "gpus_per_node": "a800:4", "cpus_per_task": 32}, 8, 64),
        ({"nodes": 1, "gres": "gpu:a800:2", "cpus_per_task": 8}, 2, 8),
        ({"nodes": 1, "gpus_per_node": "1"}, 1, 1),
        ({"cpus_per_task": 3}, 0, 3),
    ],
)
def test_what_was_asked_for(resources: dict[str, object], gpus: int, cpus: int) -> None:
    assert asked(resources) == (gpus, cpus)


@pytest.fixture()
def run(tmp_path: Path) -> RunDir:
    """A run whose ledger names the jobs of SACCT; both stages are committed."""
    run = make_run(tmp_path, "rounds=1")
    ledger = Ledger(run.ledger_jsonl)
    ledger.write("driver-submitted", job="50")
    ledger.write("driver-began", host="n1", pid=1, job="50", continued=False)
    for stage, number in ((SERVER, "51"), (PREPARE, "52")):
        ledger.write("started", stage=str(stage), attempt="01-ab12cd34")
        resources = {"nodes": 1, "gpus_per_node": "2", "cpus_per_task": 3}
        ledger.write("submitted", stage=str(stage), attempt="01-ab12cd34", job=number, resources=resources)
        commit_stage(run, stage, attempt="01-ab12cd34")
    ledger.write("committed", stage=str(PREPARE), seconds=26.0, job="52")
    return run


def accounts(patch: pytest.MonkeyPatch, text: str | None) -> list[list[str]]:
    """What sacct answers from now on; None: there are no accounts. Returns how it is called."""
    calls: list[list[str]] = []

    def command(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        calls.append(arguments)
        return subprocess.CompletedProcess(arguments, 0 if text is not None else 1, text or "", "")

    patch.setattr("jobs.accounts.command", command)
    patch.setattr("jobs.accounts.shutil.which", lambda name: f"/usr/bin/{name}")
    return calls


def test_every_restart_counts_by_what_came_of_it(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = accounts(monkeypatch, SACCT.replace("6|CANC", "52|CANC", 0))
    uses, source = used(run)
    assert "sacct" in source
    (call,) = calls
    assert {"-D", "-X", "-P"} <= set(call) and call[call.index("-j") + 1] == "50,51,52"
    found = {(one.party, one.kind, one.seconds): one for one in uses if one.party != "driver"}
    # The ledger does not say that the server committed, the disk does.
    assert found["server", "useful", 24.0].gpus == 2
    assert found["client-1", "wasted", 11.0].waited == 2.0
    assert found["client-1", "useful", 26.0].cpus == 4
    assert next(one.kind for one in uses if one.party == "driver") == "running"
    sums = add_up(uses)
    assert sums.gpu_useful == pytest.approx((2 * 24 + 26) / 3600)
    assert sums.gpu_wasted == pytest.approx(11 / 3600)
    assert sums.queued == pytest.approx((2 + 2 + 11) / 3600)


def test_a_restart_that_saved_where_it_was_is_useful(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts(monkeypatch, SACCT)
    folder = run.root / "logs" / "client-1"
    folder.mkdir(parents=True)
    line = "2026-11-21 00:58:13 client-1/r00-prepare: resume point of phase 1 (fit) written, 3.0 MB\n"
    (folder / "r00-prepare.01-ab12cd34-0.log").write_text(line)
    uses, _ = used(run)
    assert add_up(uses).gpu_wasted == 0


def test_without_accounts_the_ledger_tells(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts(monkeypatch, None)
    began = Ledger(run.ledger_jsonl).read()[5]["time"] + 7.0
    write_exit(exit_file(run, PREPARE, "01-ab12cd34"), ExitRecord(0, "", "n1", began, began + 26.0))
    uses, source = used(run)
    assert "the ledger" in source and "no accounts" in source
    client = next(one for one in uses if one.party == "client-1")
    assert (client.kind, client.seconds, client.gpus, client.cpus) == ("useful", 26.0, 2, 3)
    assert client.waited == pytest.approx(7.0)
    assert sum(one.party == "driver" for one in uses) == 1


def test_a_run_without_jobs(tmp_path: Path) -> None:
    run = make_run(tmp_path, "rounds=1")
    drive(run, {"client-1/r01-learn": [lambda *_: 1, lambda *_: 85, good]})
    uses, source = used(run)
    assert source.startswith("the ledger") and "Slurm" not in source
    sums = add_up(uses)
    assert sums.gpu_useful == 0
    assert sums.cpu_wasted == pytest.approx(0.25 / 3600)
    # 85: it was told to stop and saved where it was.
    assert sums.cpu_useful == pytest.approx(7 * 0.25 / 3600)
    assert [key for key, _ in by_party_and_round(uses)] == [
        ("server", 0),
        ("server", 1),
        ("client-1", 0),
        ("client-1", 1),
    ]
    assert fitting_unit(uses) == ("seconds", 1)


def test_the_command(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accounts(monkeypatch, SACCT)
    assert main(["cost", "--run", str(run.root)]) == 0
    shown = capsys.readouterr().out
    assert "minutes, from Slurm's accounts" in shown and max(map(len, shown.splitlines())) <= 80
    assert main(["cost", "--run", str(run.root), "--json"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert printed.count("\n") == 1 and found["unit"] == "hours"
    assert found["total"]["gpu_wasted"] == pytest.approx(11 / 3600, abs=1e-6)
    assert {row["party"] for row in found["rows"]} == {"server", "client-1", "driver"}
