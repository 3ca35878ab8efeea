"""A party of a run as a stage would see it, for tests of what stages are made of."""

from __future__ import annotations

from lada.layers import read_run
from lada.method import load_method
from lada.party import ModelCache, Party
from lada.plan import read_plan
from lada.resume import Resume
from lada.rundir import RunDir
from lada.runs import model_folder
from tests.federation import Quiet


def party(run: RunDir, name: str, stage: str = "r00-prepare") -> Party:
    """``name`` at the beginning of one of its stages."""
    config, plan = read_run(run.root), read_plan(run)
    found = plan.find(name, stage)
    return Party(
        run,
        config,
        plan,
        found,
        options=load_method(config.method).options,
        model_folder=model_folder(config),
        reporter=Quiet(),
        cache=ModelCache(),
        resume=Resume(run, found, attempt="01-x", earlier=plan.before(found)),
    )
