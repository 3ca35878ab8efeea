"""One stage from inbox to commit, and the launcher that runs stages in this very process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from lada.config import read_run
from lada.driver import Ended
from lada.errors import LadaError
from lada.exchange import commit, publish
from lada.method import load_method
from lada.models import set_matmul_precision
from lada.party import ModelCache, Party, Reporter
from lada.plan import read_plan
from lada.policy import Change
from lada.progress import open_log
from lada.rundir import RunDir, Stage
from lada.runs import model_folder


def run_stage(
    run: RunDir, stage: Stage, *, attempt: str, reporter: Reporter, cache: ModelCache | None = None
) -> bool:
    """Compute a stage, commit and publish it.

    Returns:
        Whether this attempt's work became the commit (another attempt may have been first).

    Raises:
        LadaError: when the configuration, the data or something that was read is wrong.
    """
    config, plan = read_run(run.root), read_plan(run)
    method = load_method(config.method)
    torch.set_num_threads(config.numerics.threads)
    set_matmul_precision(config.numerics.matmul_precision)
    party = Party(
        run,
        config,
        plan,
        stage,
        options=method.options,
        model_folder=model_folder(config),
        reporter=reporter,
        cache=cache or ModelCache(),
    )
    outbox = method.step(stage.step).function("server" if party.role == "server" else "client")(party)
    inputs = party.inbox.read
    first = commit(run, stage, outbox, attempt=attempt, run_id=config.run_id, inputs=inputs)
    publish(run, stage)
    return first


class InProcess:
    """Launcher: a stage runs to its end inside `start`; models are kept between stages.

    Args:
        reporter: makes the display of a stage from its name and log file.
    """

    def __init__(self, run: RunDir, reporter: Callable[[Stage, str], Reporter]) -> None:
        self._run, self._reporter = run, reporter
        self._cache = ModelCache()
        self._ended: list[Ended] = []

    def start(self, stage: Stage, attempt: str, change: Change) -> dict[str, Any]:
        """Run a stage; its outcome is what `poll` returns next."""
        begun = time.monotonic()
        code, detail = 0, ""
        with open_log(self._run.log(stage.party, stage, attempt)) as log:
            try:
                log(f"{stage} attempt {attempt} begins")
                reporter = self._reporter(stage, attempt)
                run_stage(self._run, stage, attempt=attempt, reporter=reporter, cache=self._cache)
            except LadaError as error:
                code, detail = error.exit_code, str(error)
            except OSError as error:  # a full disk, a lost file server: the next attempt may find it well
                code, detail = 1, f"{type(error).__name__}: {error}"
            if code:
                log(f"failed: {detail}")
        self._ended.append(Ended(stage, code, detail, time.monotonic() - begun))
        return {}

    def adopt(self, stage: Stage) -> None:
        """Nothing to take over: a stage never outlives its process."""

    def poll(self) -> list[Ended]:
        """What ended since the last call."""
        ended, self._ended = self._ended, []
        return ended
