"""What the driver does about failures: every cause with its reaction and its limit."""

from __future__ import annotations

import pytest

from lada.errors import NOT_RETRIED
from lada.policy import LIMITS, MAX_EXCLUDED, Cause, Change, Failure, cause_of_exit, decide

ONCE = {
    Cause.WARNED: Change(minutes=1.5),
    Cause.PREEMPTED: Change(),
    Cause.TIMEOUT: Change(minutes=1.5),
    Cause.OUT_OF_MEMORY: Change(memory=1.5),
    Cause.DEVICE_MEMORY: Change(micro_batch_divisor=2),
    Cause.NODE_LOST: Change(exclude=("n1",)),
    Cause.NO_GPU: Change(exclude=("n1",)),
    Cause.HUNG: Change(exclude=("n1",)),
    Cause.NO_SPACE: Change(),
    Cause.CORRUPT: Change(),
    Cause.CANCELLED: Change(),
    Cause.NEVER_STARTED: Change(),
    Cause.CRASHED: Change(),
}


@pytest.mark.parametrize("cause", ONCE)
def test_the_first_failure_of_a_cause_changes_what_it_should(cause: Cause) -> None:
    decision = decide([Failure(cause, "n1")], max_attempts=3)
    assert decision.action == ("pause" if cause == Cause.NO_SPACE else "retry")
    assert decision.change == ONCE[cause]


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_ends_the_run_at_its_limit_and_not_before(cause: Cause) -> None:
    limit = LIMITS.get(cause, 3)
    assert decide([Failure(cause)] * limit, max_attempts=3).action == "stop"
    if limit > 1:
        assert decide([Failure(cause)] * (limit - 1), max_attempts=3).action != "stop"


def test_different_causes_add_up_and_do_not_use_up_each_others_limits() -> None:
    failures = [Failure(Cause.OUT_OF_MEMORY)] * 2 + [Failure(Cause.CRASHED)] * 2 + [Failure(Cause.TIMEOUT)]
    decision = decide(failures, max_attempts=3)
    assert decision.action == "retry"
    assert decision.change == Change(memory=2.25, minutes=1.5)
    assert decision.change.facts() == {"memory": 2.25, "minutes": 1.5}


def test_only_the_newest_bad_nodes_are_kept_away_from() -> None:
    failures = [Failure(Cause.NODE_LOST, f"n{number}") for number in range(1, 5)]
    assert decide(failures, max_attempts=3).change.exclude == ("n3", "n4")
    assert len(decide(failures, max_attempts=3).change.exclude) == MAX_EXCLUDED


def test_time_stops_growing_for_a_stage_that_is_warned_again_and_again() -> None:
    decision = decide([Failure(Cause.WARNED)] * 50, max_attempts=3)
    assert decision.action == "retry"
    assert decision.change == Change(minutes=1.5**4)


def test_exit_codes_state_causes() -> None:
    assert {cause_of_exit(code) for code in NOT_RETRIED} == {Cause.USER_ERROR}
    assert [cause_of_exit(code) for code in (5, 10, 11, 12, 17, 85)] == [
        Cause.CORRUPT,
        Cause.DEVICE_MEMORY,
        Cause.OUT_OF_MEMORY,
        Cause.NO_SPACE,
        Cause.NO_GPU,
        Cause.WARNED,
    ]
    assert {cause_of_exit(code) for code in (1, 7, 137, -9, 0)} == {Cause.CRASHED}


def test_a_stop_names_the_remedy() -> None:
    decision = decide([Failure(Cause.OUT_OF_MEMORY)] * 4, max_attempts=3)
    assert "failed 4 times" in decision.reason
    assert "memory_gb" in decision.reason
