"""Every method, and LaDa in each host, on a real cluster: the CSV of the in-process run, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada.method import method_names
from tests.cluster.harness import SMALL, Suite

HOSTS = ("fedkd", "fedmkt", "wasp")
VARIANTS = {
    **{name: (name, "") for name in method_names()},
    **{f"{name}+lada": (name, "method.plugin=lada") for name in HOSTS},
    "fedmkt-seq": ("fedmkt", "method.mode=seq"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_method_gives_on_the_cluster_what_it_gives_in_one_process(
    variant: str, suite: Suite, tmp_path: Path
) -> None:
    method, setting = VARIANTS[variant]
    options = (*SMALL, "--method", method, *(("--set", setting) if setting else ()))
    run = suite.submit(f"method-{variant}", *options).wait()
    assert run.failures() == []
    assert run.folder.metrics_csv.read_bytes() == suite.in_process(tmp_path, *options)
