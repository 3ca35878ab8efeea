"""A run before it is submitted: every stage with what it asks for, its exact batch script, the totals."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.batch import sbatch_text
from jobs.cluster import Cluster, Resources
from jobs.submit import driver_options
from lada.config import RunConfig
from lada.plan import Plan
from lada.policy import Change
from lada.rundir import RunDir, Stage

ATTEMPT = "01-00000000"
"""Stands in the shown scripts for the attempt's name, which is new each time."""


@dataclass(frozen=True)
class StagePlan:
    """A stage and what one attempt of it asks for."""

    stage: Stage
    group: int
    model: str
    committed: bool
    resources: Resources

    @property
    def gpu_hours(self) -> float:
        """At most, by the time limit."""
        return self.resources.gpus * self.resources.nodes * self.resources.minutes / 60

    @property
    def core_hours(self) -> float:
        """At most, by the time limit."""
        return self.resources.cpus * self.resources.nodes * self.resources.minutes / 60


@dataclass(frozen=True)
class DryRun:
    """All that `make plan` shows."""

    run: RunDir
    config: RunConfig
    plan: Plan
    cluster: Cluster
    stages: tuple[StagePlan, ...]

    @property
    def left(self) -> list[StagePlan]:
        """Stages that are not committed yet."""
        return [one for one in self.stages if not one.committed]

    def totals(self) -> dict[str, float]:
        """What is left, at most: every stage needs its whole time limit, and none a second attempt."""
        longest: dict[int, int] = {}
        for one in self.left:
            longest[one.group] = max(longest.get(one.group, 0), one.resources.minutes)
        return {
            "stages": len(self.left),
            "groups": len(longest),
            "gpu_hours": sum(one.gpu_hours for one in self.left),
            "core_hours": sum(one.core_hours for one in self.left),
            "wall_hours": sum(longest.values()) / 60,
        }

    def driver_command(self) -> list[str]:
        """The command that submits the driver."""
        return ["sbatch", *driver_options(self.run, self.cluster)]

    def script(self, stage: Stage) -> str:
        """The exact batch script of a stage."""
        return sbatch_text(self.run, self.config, self.cluster, stage, ATTEMPT, Change())


def dry_run(run: RunDir, config: RunConfig, plan: Plan, cluster: Cluster) -> DryRun:
    """Every stage with what it asks for.

    Raises:
        ConfigError: the cluster file has no resources for a party's model.
    """
    resources = cluster.resources_of(config)
    stages = tuple(
        StagePlan(
            stage,
            number,
            config.party(stage.party).model,
            run.is_committed(stage),
            resources[stage.party],
        )
        for number, group in enumerate(plan.groups(), start=1)
        for stage in group
    )
    return DryRun(run, config, plan, cluster, stages)
