"""Training by several ranks, once undisturbed and once paused again and again: run by torchrun.

    torchrun --standalone --nproc-per-node=2 -m tests.rank_pauses MODELS OUT CASE …

Cases are those of `tests.rank_work`; OUT/<case>.json gets what both ways came to and how often one paused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lada.errors import Paused, end
from lada.language_model import state_hash
from lada.losses import PairLoss
from lada.ranks import Ranks
from lada.resume import Resume
from lada.rundir import RunDir, Stage
from lada.training import fit
from tests.pauses import Warned
from tests.rank_work import HEAD_CHUNK, PAIRS, TRAINING, Case, each_case, open_case


def trained(found: Case, models: Path, ranks: Ranks, resume: Resume | None) -> list[Any]:
    """Norms of the steps, and a digest of the weights that a model read afresh is left with."""
    model = open_case(found, models, ranks)
    loss = PairLoss(kind="cross_entropy")
    logs = fit(model, PAIRS, TRAINING, loss, learning_rate=0.01, seed=3, head_chunk=HEAD_CHUNK, resume=resume)
    return [[one.grad_norm for one in logs], state_hash(model.state())]


def paused(found: Case, models: Path, ranks: Ranks, folder: Path) -> tuple[list[Any], int]:
    """`trained`, with an attempt for every two steps; and how many of them paused."""
    run = RunDir(folder)
    run.root.mkdir()
    run.run_yaml.write_text("{}")
    stage = Stage(1, "learn", "client-1")
    for number in range(50):
        resume = Resume(run, stage, attempt=f"{number}-x", earlier=[], warned=Warned(3))
        try:
            return trained(found, models, ranks, resume), number
        except Paused:
            continue
    raise AssertionError(f"{found} comes to no end")


def main(models: Path, out: Path, names: list[str]) -> None:
    """Both ways of each case."""

    def compute(found: Case, ranks: Ranks) -> None:
        undisturbed = trained(found, models, ranks, None)
        again, pauses = paused(found, models, ranks, out / str(found))
        (out / f"{found}.json").write_text(json.dumps([undisturbed, again, pauses]))

    each_case(names, compute)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    end(0)
