"""A process per stage gives what one process for all does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs.launch import Local
from lada.driver import Driver
from lada.rundir import RunDir
from tests.federation import drive


@pytest.mark.slow
def test_local_launcher_gives_the_same_metrics_bit_for_bit(tiny_run: Callable[..., RunDir]) -> None:
    expected, run = drive(tiny_run("here")), tiny_run("apart")
    Driver(run, Local(run)).drive()
    assert run.metrics_csv.read_bytes() == expected.metrics_csv.read_bytes()
    assert (run.root / "logs" / "client-1").is_dir()
