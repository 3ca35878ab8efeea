"""Drive a whole run by several ranks: torchrun --standalone --nproc-per-node=2 -m tests.rank_run RUN ZERO."""

from __future__ import annotations

import sys
from pathlib import Path

from lada import zero
from lada.plan import read_plan
from lada.ranks import joined
from lada.rundir import RunDir
from lada.stage import follow_stage, run_stage
from tests.federation import Quiet


def main(root: Path, stage: int) -> None:
    """Every stage that is not committed, in order."""
    run = RunDir(root)
    zero.KEPT_WHOLE = 40
    plan = read_plan(run)
    with joined(stage) as ranks:
        if not ranks.leads:
            follow_stage(run, next(plan.groups())[0], ranks)
            return
        for group in plan.groups():
            for one in group:
                if not run.is_committed(one):
                    run_stage(run, one, attempt="01-x", reporter=Quiet(), log=print, ranks=ranks)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
