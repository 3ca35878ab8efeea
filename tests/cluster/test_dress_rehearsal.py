"""The dress rehearsal of the paper tier: its scenario 1 in small, two ranks a party, from `make` to CSV."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from lada.layers import read_run
from lada.model_facts import model_facts
from lada.rehearsal import small
from tests.cluster.conftest import open_suite
from tests.cluster.harness import ROOT, SESSION, Run, Suite, wait_for

SAMPLE = ROOT.parent / "shared" / "data" / "mathinstruct_sample.json"
CLUSTER = "CLUSTER=devcluster-ranks"
PATIENCE = 3600.0
"""Seconds: 20 stages of two processes each on four nodes of one host."""


def test_scenario_1_of_the_paper_tier_is_rehearsed_with_two_ranks_a_party(suite: Suite) -> None:
    if not SAMPLE.is_file():
        pytest.skip("questions in MathInstruct's format (shared/data beside the checkout) are not here")
    own = suite.folder.with_name("test-suite-rehearsal")
    suite = open_suite(Path(suite.environment["DEVCLUSTER"]), own.name)
    data = own / "build" / "MathInstruct.json"
    suite.command("mkdir", "-p", str(data.parent))
    shutil.copyfile(SAMPLE, data)
    data.chmod(0o644)

    assert "make rehearsal-models" in make(suite, f"doctor {CLUSTER} WAIT=0").stdout
    made = make(suite, f"rehearsal-models SCENARIO=1 {CLUSTER}", check=True).stdout
    assert "4 of 4 rehearsal models made" in made or "4 were there" in made
    asked = f"SCENARIO=1 TIER=rehearsal {CLUSTER} DATA={data} RUNS=runs/{SESSION}/rehearsal"
    planned = json.loads(make(suite, f"plan {asked} JSON=1", check=True).stdout)
    assert {one["resources"]["ranks"] for one in planned["stages"]} == {2}
    assert {one["resources"]["zero"] for one in planned["stages"]} == {2, 3}

    run = Run(suite, Suite.printed(make(suite, f"submit {asked}", check=True)))
    wait_for(lambda: 2 in ranks(run), f"a stage of two ranks\n{run.tail()}")
    run.wait(patience=PATIENCE)
    assert run.failures() == []
    submitted = run.events("submitted")
    assert {(event.get("ranks"), event.get("zero")) for event in submitted} == {(2, 2), (2, 3)}
    check_results(run)


def make(suite: Suite, command: str, *, check: bool = False) -> subprocess.CompletedProcess[str]:
    """As a newcomer types it, from a checkout that only root can read."""
    own = {"DEVSUITE": str(suite.folder), "DEVCLUSTER": suite.environment["DEVCLUSTER"]}
    outer = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", *command.split()],
        cwd=ROOT,
        env=outer | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, f"make {command}\n{done.stdout}\n{done.stderr}"
    return done


def ranks(run: Run) -> list[int]:
    """Of each stage that is at work: processes that compute it, torchrun itself not counted."""
    found: dict[tuple[str, ...], int] = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        asked = ["-m", "lada", "step", "--run", str(run.folder.root)]
        places = [at for at in range(len(words)) if words[at : at + 5] == asked]
        if places and not any("torchrun" in word for word in words[: places[0]]):
            stage = tuple(words[places[0] + 5 : places[0] + 9])
            found[stage] = found.get(stage, 0) + 1
    return list(found.values())


def check_results(run: Run) -> None:
    """The CSV is whole, every party has learnt something, and adapters are those of the models."""
    config = read_run(run.folder.root)
    with run.folder.metrics_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["tier"] for row in rows} == {"rehearsal"}
    found = {(row["party"], int(row["round"]), row["metric"]): float(row["value"]) for row in rows}
    for party in config.parties:
        measured = {number for name, number, metric in found if (name, metric) == (party.name, "accuracy")}
        assert measured >= set(range(1, config.rounds + 1)), party.name
        check_adapter(run, party.name, party.model)
    assert sum(found.get((name, 1, "trained_samples"), 0.0) for name in config.clients) > 0


def check_adapter(run: Run, party: str, model: str) -> None:
    """Under ZeRO-3 a rank holds a share; what was published is the whole, not zero, and fits the model."""
    files = sorted((run.folder.root / "exchange" / party).glob("*/r01-learn/adapter.safetensors"))
    lora = read_run(run.folder.root).lora
    assert files and lora is not None, f"{party} has published no adapter"
    facts, weights = model_facts(model), load_file(files[0])
    shape = small(facts.architecture)
    found = sorted((key.split(".lora_")[0].rpartition(".")[2], value.shape) for key, value in weights.items())
    wanted = []
    for name in facts.lora_targets:
        outputs, inputs = shape.linears[name]
        wanted += [(name, (lora.rank, inputs)), (name, (outputs, lora.rank))] * shape.num_layers
    assert found == sorted(wanted)
    assert any(abs(value).max() > 0 for key, value in weights.items() if "lora_B" in key)
