"""A matrix that is killed and repeated: the same bytes in every table, figure and page."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.test_build_products import TABLE5, checkout, clone, done, make, products

__all__ = ["checkout", "clone"]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("killed-matrix")]


def test_killed_at_random_and_repeated_the_tables_are_the_same_bytes(checkout: Path) -> None:
    for seconds in (9.0, 15.0):
        process = make(checkout, *TABLE5, "RUNS=killed")
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    done(checkout, *TABLE5, "RUNS=killed")
    status = done(checkout, "status", "MATRIX=table5", "SIZE=tiny", "RUNS=killed")
    assert "4 runs: 4 done" in status and "without-filter" in status
    done(checkout, "tables", "figures", "report")
    once = products(checkout)
    shutil.rmtree(checkout / "results")

    done(checkout, *TABLE5)
    done(checkout, "tables", "figures", "report")
    again = products(checkout)
    assert once.keys() == again.keys()
    for name, content in once.items():
        assert content == again[name], name
