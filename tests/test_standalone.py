"""Standalone and its step-matched control: no bytes, and as many steps as asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada.errors import ConfigError
from lada.method import load_method
from lada.rundir import RunDir
from tests.federation import commit, drive, metrics
from tests.federation import make as make_run
from tests.smallest_models import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("smallest_lab")]


def make(runs: Path, *settings: str, **named: str) -> RunDir:
    """A run of the smallest models: about a second."""
    return make_run(runs, *SETTINGS, *settings, small=False, **named)


def test_standalone_sends_nothing_and_trains_no_server(tmp_path: Path) -> None:
    run = drive(make(tmp_path, method="standalone"))
    found = metrics(run)
    assert not [key for key in found if key[2].startswith("bytes_sent")]
    assert not list((run.root / "exchange").rglob("*.jsonl"))
    assert found[0, "server", "accuracy"] == found[0, "server", "accuracy_base"]
    assert {key[0] for key in found} == {0}


def test_matched_standalone_trains_on_for_the_asked_steps(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "method.steps_per_round=3", method="standalone_matched"))
    found = metrics(run)
    assert found[1, "client-1", "optimiser_steps"] == found[2, "client-1", "optimiser_steps"] == 3
    states = [commit(run, n, s, "client-1") for n, s in ((0, "prepare"), (1, "practise"), (2, "practise"))]
    contents = [(path / "state" / "model.safetensors").read_bytes() for path in states]
    assert len(set(contents)) == 3


def test_matched_standalone_counts_the_longest_federated_run_by_default(tmp_path: Path) -> None:
    run = drive(make(tmp_path, "rounds=1", method="standalone_matched"))
    assert metrics(run)[1, "client-1", "optimiser_steps"] == 2 * 16 / 8


@pytest.mark.parametrize("steps", [0, -1])
def test_matched_standalone_refuses_steps_that_are_none(steps: int) -> None:
    with pytest.raises(ConfigError, match=r"method\.steps_per_round.*greater than 0"):
        load_method({"name": "standalone_matched", "steps_per_round": steps})
