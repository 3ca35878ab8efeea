"""What the Slurm launcher concludes from what Slurm says; tests/cluster tries it with a real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import slurm, slurm_launcher
from jobs.cluster import Cluster, Patience, SizedResources
from jobs.failures import ExitRecord
from jobs.slurm import Job, SlurmError, Verdict, comment, job_name
from jobs.slurm_launcher import MISSES, Slurm
from jobs.stage_job import exit_file, submitit_folder, write_exit
from lada.policy import Cause, Change
from lada.rundir import RunDir, Stage
from tests.fake_runs import commit_stage, make_run

STAGE = Stage(0, "prepare", "client-1")
ATTEMPT = "01-ab"
CLUSTER = Cluster(
    name="site", resources=(SizedResources(up_to=80),), patience=Patience(poll_seconds=1, hang_minutes=1)
)


class World:
    """Slurm and the clock, as a test sets them.

    Attributes:
        queue: what squeue shows; None: no answer.
        verdict: of a job that is not in the queue.
    """

    def __init__(self, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = run
        self.now = 0.0
        self.listens = True
        self.queue: list[Job] | None = []
        self.verdict = Verdict("unknown")
        self.cancelled: list[str] = []
        self.said: list[str] = []
        monkeypatch.setattr(slurm, "my_jobs", lambda: self.queue)
        monkeypatch.setattr(slurm, "probe", lambda ids, queue=None: dict.fromkeys(ids, self.verdict))
        monkeypatch.setattr(slurm, "cancel", self.cancel)
        monkeypatch.setattr(slurm_launcher.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(slurm_launcher.time, "sleep", self.sleep)
        self.job = Job(
            "7", job_name(run, STAGE), "RUNNING", "None", comment(run, ATTEMPT), "n2", "0:10", "1:00:00"
        )
        self.launcher = Slurm(run, CLUSTER, report=self.said.append)

    def cancel(self, ids: list[str]) -> bool:
        self.cancelled += ids
        return self.listens

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.queue = self.queue or []

    def adopt(self) -> dict[str, Any] | None:
        self.queue = [self.job]
        return self.launcher.adopt(STAGE)

    def left_the_queue(self, verdict: Verdict) -> list[Any]:
        self.queue, self.verdict = [], verdict
        return self.launcher.poll()


@pytest.fixture()
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(make_run(tmp_path), monkeypatch)


def test_a_live_job_is_adopted_with_its_attempt(world: World) -> None:
    assert world.adopt() == {"job": "7", "attempt": ATTEMPT}
    assert world.launcher.poll() == []
    world.queue = [replace(world.job, comment="lada:elsewhere:01-cd", id="8")]
    assert world.launcher.adopt(Stage(0, "prepare", "server")) is None


def test_a_silent_controller_is_waited_for_before_anything_is_submitted(world: World) -> None:
    world.queue = None
    assert world.launcher.adopt(STAGE) is None
    assert world.said == ["Slurm does not answer: waiting"]


def test_a_commit_ends_an_attempt_whatever_slurm_says(world: World) -> None:
    world.adopt()
    commit_stage(world.run, STAGE)
    world.queue = [replace(world.job, state="PENDING", reason="launch failed requeued held")]
    (end,) = world.launcher.poll()
    assert (end.exit_code, end.cause) == (0, None)
    assert world.cancelled == ["7"], "what is still queued for it is taken away"


def test_a_job_that_nobody_knows_is_not_over_at_once(world: World) -> None:
    world.adopt()
    for _ in range(MISSES - 1):
        assert world.left_the_queue(Verdict("gone")) == []
    world.queue = [world.job]
    assert world.launcher.poll() == [], "it is back: the misses are forgotten"
    for _ in range(MISSES - 1):
        assert world.left_the_queue(Verdict("gone")) == []
    (end,) = world.left_the_queue(Verdict("gone"))
    assert end.cause == Cause.NEVER_STARTED
    assert end.job == "7"


def test_no_answer_is_no_end(world: World) -> None:
    world.adopt()
    for _ in range(9):
        assert world.left_the_queue(Verdict("unknown")) == []
    world.queue = None
    assert world.launcher.poll() == []


def test_a_job_that_slurm_contradicts_itself_about_is_judged_by_its_log(world: World) -> None:
    world.adopt()
    for _ in range(3):
        assert world.left_the_queue(Verdict("unknown", "RUNNING")) == []
        world.now += 25
    (end,) = world.left_the_queue(Verdict("unknown", "RUNNING", nodes="n2"))
    assert (end.cause, end.node, world.cancelled) == (Cause.NODE_LOST, "n2", ["7"])


def test_the_exit_record_decides_over_slurms_state(world: World) -> None:
    world.adopt()
    write_exit(exit_file(world.run, STAGE, ATTEMPT), ExitRecord(5, "a message is broken", "n3", 10.0, 14.0))
    (end,) = world.left_the_queue(Verdict("over", "FAILED", nodes="n3"))
    assert (end.cause, end.exit_code, end.detail, end.node, end.seconds) == (
        Cause.CORRUPT,
        5,
        "a message is broken",
        "n3",
        4.0,
    )


def test_a_job_that_requeued_itself_left_no_end(world: World) -> None:
    world.adopt()
    write_exit(exit_file(world.run, STAGE, ATTEMPT), ExitRecord(85, "", "n3", 1.0, 2.0, requeued=True))
    assert world.launcher.poll() == []
    (end,) = world.left_the_queue(Verdict("over", "CANCELLED", nodes="n3"))
    assert end.cause != Cause.WARNED


def test_what_the_job_said_tells_out_of_memory(world: World) -> None:
    world.adopt()
    log = submitit_folder(world.run, "client-1") / "7_0_log.out"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(
        "slurmstepd-n3: error: StepId=7.0 exceeded memory limit (306143232 > 268435456), being killed\n"
    )
    (end,) = world.left_the_queue(Verdict("over", "FAILED", nodes="n2"))
    assert end.cause == Cause.OUT_OF_MEMORY
    assert "exceeded memory limit" in end.detail


def test_a_commit_that_a_slow_file_system_hides_is_waited_for(world: World) -> None:
    world.adopt()
    world.now = 1.0
    write_exit(exit_file(world.run, STAGE, ATTEMPT), ExitRecord(0, "", "n3", 1.0, 2.0))
    assert world.left_the_queue(Verdict("over", "COMPLETED")) == []
    world.now += slurm_launcher.STALE_SECONDS + 1
    (end,) = world.left_the_queue(Verdict("over", "COMPLETED"))
    assert end.cause == Cause.CRASHED


def test_a_stage_without_a_new_line_for_too_long_is_cancelled_as_hung(world: World) -> None:
    world.adopt()
    log = world.run.log("client-1", STAGE, f"{ATTEMPT}-0")
    log.parent.mkdir(parents=True)
    for line in ("begins\n", "begins\ngoes on\n"):
        log.write_text(line)
        assert world.launcher.poll() == []
        world.now += 50
    assert world.cancelled == [], "a new line within the minute"
    world.now += 50
    world.listens = False
    assert world.launcher.poll() == []
    world.listens = True
    assert world.launcher.poll() == []
    assert world.cancelled == ["7", "7"], "an order that the controller did not hear is given again"
    (end,) = world.left_the_queue(Verdict("over", "CANCELLED", nodes="n2"))
    assert (end.cause, end.node) == (Cause.HUNG, "n2")


def test_a_job_that_a_node_refused_is_tried_elsewhere(world: World) -> None:
    world.adopt()
    world.queue = [replace(world.job, state="PENDING", reason="launch failed requeued held", nodes="")]
    (end,) = world.launcher.poll()
    assert (end.cause, world.cancelled) == (Cause.NODE_LOST, ["7"])


def test_a_held_job_is_told_of_once(world: World) -> None:
    world.adopt()
    world.queue = [replace(world.job, state="PENDING", reason="JobHeldUser")]
    assert [world.launcher.poll() for _ in range(3)] == [[], [], []]
    assert world.said == ["client-1/r00-prepare: job 7 waits in the queue: JobHeldUser"]


class TestSubmission:
    """submitit's executor stands in for sbatch: what it says decides."""

    @pytest.fixture()
    def replies(self, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        replies: list[object] = []

        class Executor:
            def __init__(self, folder: Path) -> None:
                pass

            def update_parameters(self, **parameters: object) -> None:
                assert parameters["dependency"] == "singleton"

            def submit(self, *arguments: object) -> object:
                reply = replies.pop(0)
                if isinstance(reply, Exception):
                    raise reply
                return reply

        monkeypatch.setattr(slurm_launcher.submitit, "SlurmExecutor", Executor)
        return replies

    def test_a_controller_that_is_away_is_tried_again(self, world: World, replies: list[object]) -> None:
        away = slurm_launcher.FailedJobError(
            "sbatch: error: Unable to contact slurm controller (connect failure)"
        )
        replies += [away, away, type("Job", (), {"job_id": "9"})()]
        facts = world.launcher.start(STAGE, ATTEMPT, Change())
        assert facts["job"] == "9"
        assert "ranks" not in facts, "one rank is nothing to speak of"
        assert world.said[:2] == ["Slurm's controller does not answer: trying again"] * 2

    def test_a_lost_reply_is_found_by_name_and_attempt(self, world: World, replies: list[object]) -> None:
        replies.append(
            slurm_launcher.FailedJobError("sbatch: error: Socket timed out on send/recv operation")
        )
        world.queue = [replace(world.job, state="PENDING", id="11")]
        assert world.launcher.start(STAGE, ATTEMPT, Change())["job"] == "11"
        assert replies == []

    def test_a_site_that_refuses_more_is_asked_for_less(self, world: World, replies: list[object]) -> None:
        refusal = slurm_launcher.FailedJobError(
            "sbatch: error: Requested node configuration is not available"
        )
        replies += [refusal, refusal, type("Job", (), {"job_id": "9"})()]
        facts = world.launcher.start(STAGE, ATTEMPT, Change(memory=1.5, minutes=1.5, exclude=("n1",)))
        assert facts["resources"]["mem"] == "32768M"
        assert replies == []

    def test_a_refusal_is_an_error_with_sbatchs_words(self, world: World, replies: list[object]) -> None:
        replies.append(slurm_launcher.FailedJobError("sbatch: error: invalid partition specified: gpu"))
        with pytest.raises(SlurmError, match="invalid partition specified: gpu"):
            world.launcher.start(STAGE, ATTEMPT, Change())
