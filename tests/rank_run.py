"""Drive a whole run by several ranks in one go.

    torchrun --standalone --nproc-per-node=2 -m tests.rank_run RUN ZERO [EVERY]

With EVERY, each attempt of a stage is warned at its n-th safe point, until the stage is committed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lada import zero
from lada.errors import Paused, end
from lada.plan import read_plan
from lada.progress import stream_log
from lada.ranks import Ranks, joined
from lada.rundir import RunDir, Stage
from lada.stage import follow_stage, run_stage
from tests.federation import Quiet
from tests.pauses import Warned


def compute(run: RunDir, stage: Stage, ranks: Ranks, every: int) -> None:
    """Attempts at a stage, until one commits it."""
    for number in range(1, 100):
        try:
            run_stage(
                run,
                stage,
                attempt=f"{number:02d}-x",
                reporter=Quiet(),
                log=stream_log(sys.stdout),
                warned=Warned(every) if every else lambda: False,
                ranks=ranks,
            )
        except Paused as paused:
            stream_log(sys.stdout)(str(paused))
        else:
            return
    raise AssertionError(f"{stage} comes to no end")


def main(root: Path, stage: int, every: int = 0) -> None:
    """Every stage that is not committed, in order."""
    run, plan = RunDir(root), read_plan(RunDir(root))
    zero.KEPT_WHOLE = 40  # else nothing of models this small would be shared
    stages = [one for group in plan.groups() for one in group if not run.is_committed(one)]
    with joined(stage) as ranks:
        if not ranks.leads:
            follow_stage(run, stages[0], ranks)
            return
        for one in stages:
            compute(run, one, ranks, every)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    end(0)
