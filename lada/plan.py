"""What a run consists of, and what of it is still to do. Pure: plan.json + what is on disk -> stages.

A plan lists a method's steps with their roles; a step of a round is a group of stages that may run side by
side, and a group begins when the one before it is committed whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from lada.config import SERVER
from lada.errors import PlanError
from lada.records import Record, explain
from lada.rundir import RunDir, Stage

Role = Literal["server", "client"]


class PlannedStep(Record):
    """A step of the method: who takes part, and whether it is done once, before round 1."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    roles: Annotated[tuple[Role, ...], Field(min_length=1, strict=False)]
    once: bool = False


class Plan(Record):
    """plan.json: all that the driver and the status command know of a method."""

    run_id: str
    method: str
    rounds: int
    parties: Annotated[tuple[str, ...], Field(strict=False)]
    steps: Annotated[tuple[PlannedStep, ...], Field(min_length=1, strict=False)]

    def groups(self) -> Iterator[tuple[Stage, ...]]:
        """Groups of stages in the order of the run; a barrier stands between two groups."""
        for number in range(self.rounds + 1):
            for step in self.steps:
                if step.once != (number == 0):
                    continue
                yield tuple(
                    Stage(number, step.name, party)
                    for party in self.parties
                    if ("server" if party == SERVER else "client") in step.roles
                )

    def pending(self, is_committed: Callable[[Stage], bool]) -> Iterator[tuple[Stage, ...]]:
        """Groups with what is not committed yet, whole groups that are done left out."""
        for group in self.groups():
            missing = tuple(stage for stage in group if not is_committed(stage))
            if missing:
                yield missing

    def before(self, stage: Stage) -> list[str]:
        """Names of all stages of earlier groups, oldest first."""
        names: list[str] = []
        for group in self.groups():
            if stage in group:
                return names
            names.append(group[0].name)
        raise PlanError(f"stage {stage} is not in the plan of {self.run_id}")

    def find(self, party: str, name: str) -> Stage:
        """The stage of a party by its folder name.

        Raises:
            PlanError: listing the legal names.
        """
        legal = [stage for group in self.groups() for stage in group if stage.party == party]
        for stage in legal:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in legal) or f"none for party '{party}'"
        raise PlanError(f"no stage '{name}'; legal: {names}")


def read_plan(run: RunDir) -> Plan:
    """plan.json of a run.

    Raises:
        PlanError: when it is missing or not a plan.
    """
    try:
        return Plan.model_validate_json(run.plan_json.read_bytes())
    except OSError as error:
        raise PlanError(f"{run.plan_json}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PlanError(f"{run.plan_json}: {explain(error)}") from error
