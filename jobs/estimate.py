"""How long a run still takes, from what its stages took so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jobs.history import Attempt, History
from lada.plan import Plan
from lada.rundir import Stage


def seconds_left(
    plan: Plan, history: History, committed: Iterable[Stage], under_way: Mapping[Stage, float]
) -> float | None:
    """Estimate of the time to the end of the run, time in the queue left out.

    Choice: a stage takes as long as the same step of the same party took in its last round, and a group of
    stages as long as its stages side by side did then: between its longest stage (a job each) and the sum of
    all (one process).

    Args:
        under_way: seconds that stages which run now have run so far.

    Returns:
        Seconds; 0 where all is committed, None while a step that is still to come was never seen to its end.
    """
    done = frozenset(committed)
    took = {stage: seconds for stage in done if (seconds := _seconds(history, stage)) is not None}
    latest = {(stage.step, stage.party): seconds for stage, seconds in sorted(took.items())}
    left = 0.0
    for group in plan.groups():
        missing = [stage for stage in group if stage not in done]
        if not missing:
            continue
        if any((stage.step, stage.party) not in latest for stage in missing):
            return None
        share = _share_in_sequence(plan, group[0].step, history, took)
        times = [latest[stage.step, stage.party] - under_way.get(stage, 0.0) for stage in missing]
        known = [max(0.0, time) for time in times]
        left += max(max(known), share * sum(known))
    return left


def _share_in_sequence(plan: Plan, step: str, history: History, took: Mapping[Stage, float]) -> float:
    """Time from the first start to the last end of a step's last whole group, by the sum of its stages'."""
    for group in reversed(list(plan.groups())):
        if group[0].step != step or any(stage not in took for stage in group):
            continue
        ends = [(_last(history, stage).began, _last(history, stage).ended) for stage in group]
        begins = [began for began, _ in ends if began is not None]
        over = [ended for _, ended in ends if ended is not None]
        total = sum(took[stage] for stage in group)
        if not begins or not over or total <= 0:
            return 1.0
        return min(1.0, (max(over) - min(begins)) / total)
    return 1.0


def _seconds(history: History, stage: Stage) -> float | None:
    attempts = history.get(str(stage), ())
    return next((one.seconds for one in reversed(attempts) if one.outcome == "committed"), None)


def _last(history: History, stage: Stage) -> Attempt:
    return history[str(stage)][-1]
