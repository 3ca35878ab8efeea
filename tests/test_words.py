"""Slurm's reasons and our causes in plain words, durations and sizes, nothing that steers a terminal."""

from __future__ import annotations

import pytest

from jobs.words import CAUSES, REASONS, cause_words, duration, printable, reason_words, size
from lada.policy import Cause


@pytest.mark.parametrize(
    ("code", "said", "stuck"),
    [
        ("Resources", "free GPUs", False),
        ("(Priority)", "other jobs come first", False),
        ("Dependency", "singleton", False),
        ("BeginTime", "set time", False),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-4]", "down, drained or reserved", False),
        ("ReqNodeNotAvail(Unavailable:n1)", "down, drained or reserved", False),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
            "down, drained",
            False,
        ),
        ("QOSMaxGRESPerUser", "the QOS's limit of GPUs per user is reached", False),
        ("QOSMaxJobsPerUserLimit", "the QOS's limit of jobs at once per user is reached", False),
        ("QOSGrpGRES", "the QOS's limit of GPUs is reached", False),
        ("AssocGrpGRES", "your account's limit of GPUs is reached", False),
        ("AssocGrpCPURunMinutesLimit", "time that all running jobs together", False),
        ("AssocMaxJobsLimit", "your account's limit of jobs at once", False),
        ("AssocGrpGRESMinutes", "budget of time is used up", True),
        ("AssocMaxWallDurationPerJobLimit", "more than your account's limit of time for a job", True),
        ("QOSMaxWallDurationPerJobLimit", "more than the QOS's limit of time for a job", True),
        ("QOSMaxGRESPerJob", "more than the QOS's limit of GPUs for a job", True),
        ("QOSMaxCpuPerNode", "more than the QOS's limit of cores for a node", True),
        ("QOSMinGRES", "less than the QOS's least GPUs", True),
        ("JobHeldUser", "you hold it", True),
        ("JobHeldAdmin", "administrator", True),
        ("launch failed requeued held", "could not be launched", True),
        ("PartitionTimeLimit", "more time than the partition allows", True),
        ("BadConstraints", "no node has", True),
        ("DependencyNeverSatisfied", "never starts", True),
        ("SomethingOfTheFuture", "Slurm says: SomethingOfTheFuture", False),
        ("", "Slurm says: nothing", False),
    ],
)
def test_reasons_are_said_in_words(code: str, said: str, stuck: bool) -> None:
    found = reason_words(code)
    assert said in found.text
    assert found.stuck is stuck


def test_whatever_is_stuck_says_what_to_do() -> None:
    assert [code for code, reason in REASONS.items() if reason.stuck and not reason.todo] == ["DeadLine"]


def test_every_cause_of_the_policy_has_words() -> None:
    assert {str(cause) for cause in Cause} <= set(CAUSES)
    assert cause_words("out_of_memory") == "ran out of memory"
    assert cause_words("brand_new") == "brand new"
    assert cause_words("") == "ended with an error"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (8.5, "8.5 s"),
        (45, "45 s"),
        (100, "2 min"),
        (720, "12 min"),
        (12000, "3 h 20 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (820_000, "820 kB"), (3.4e9, "3.4 GB"), (5e12, "5.0 TB")],
)
def test_sizes(count: float, said: str) -> None:
    assert size(count) == said


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[31mred\x07\x9b2J\tb\rc\n") == "a�[31mred��2J\tb\nc\n"
