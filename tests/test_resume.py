"""A stage that is warned again and again commits the same bytes as one that is left in peace."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lada.config import GenerationOptions, LoraOptions, TrainOptions
from lada.errors import ConfigError, NoSpaceError, Paused
from lada.exchange import sweep
from lada.generation import generate
from lada.knowledge import top_knowledge
from lada.language_model import LanguageModel, state_hash
from lada.losses import PairLoss, SoftLoss
from lada.resume import Resume, Saved, begin
from lada.rundir import RunDir, Stage
from lada.soft_targets import SoftTargets
from lada.training import Example, Hooks, fit, sequence_log_probs, with_reference
from lada.training_state import StepLog
from tests.federation import drive, make
from tests.pauses import Warned, attempt, check_same_bytes, content, until_committed, without
from tests.smallest_models import SETTINGS
from tests.tiny_models import LORA, random_ids, random_pairs, tiny_model, words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("smallest_lab", "no_fsync")]

ROOT = Path(__file__).parents[1]
SMALL_GROUPS = (
    "rounds=2",
    "generation.batch_size=3",
    "generation.max_new_tokens=64",
    "training.local.micro_tokens=300",
    "training.client.micro_tokens=300",
    "training.server.micro_tokens=300",
    "training.client.epochs=2",
    "training.client.batch_size=2",
    "training.server.epochs=2",
    "training.server.batch_size=2",
    "data.num_public=24",
    "data.num_test=3",
    "method.select.rule=topk",
    "method.select.share=0.8",
)
"""Many safe points in every kind of phase."""
SEVERAL = {
    "full": (),
    "adapter-dropout-online-refine": (
        "lora={rank: 2, alpha: 4, dropout: 0.3}",
        "method.filter.online=true",
        "method.select.refine=true",
        "method.features.history=true",
    ),
    "same-batch-rationales": (
        "method.reward.batch_pairing=same_batch",
        "local.target=self_rationale",
        "local.num_samples=2",
    ),
}
"""What changes beside the model while a stage runs."""
PREPARE, LEARN, TEACH = (
    Stage(0, "prepare", "client-1"),
    Stage(1, "learn", "client-1"),
    Stage(2, "learn", "server"),
)

Runs = Callable[[str], RunDir]


@pytest.fixture(scope="module")
def runs(smallest_lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Finished, undisturbed runs by their name in SEVERAL, each made once."""

    @cache
    def finished(name: str) -> RunDir:
        settings = (*SETTINGS, *SMALL_GROUPS, *SEVERAL[name])
        return drive(make(tmp_path_factory.mktemp("finished"), *settings, small=False))

    return finished


@pytest.fixture()
def plain(runs: Runs) -> RunDir:
    return runs("full")


# -- the same bytes


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize(
    ("stage", "every", "inside"),
    [
        (PREPARE, 9, {"generate"}),
        (LEARN, 5, {"generate", "fit", "sequence_log_probs"}),
        (TEACH, 6, {"generate", "fit", "sequence_log_probs"}),
    ],
    ids=["prepare", "learn", "teach"],
)
def test_paused_at_every_nth_safe_point_it_commits_the_same_bytes(
    stage: Stage,
    every: int,
    inside: set[str],
    name: str,
    runs: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = check_same_bytes(runs(name), stage, tmp_path, monkeypatch, every=every, inside=inside)
    assert any("was finished by an earlier attempt" in line for line in lines)


@pytest.mark.parametrize("every", [25, 60])
def test_short_finished_phases_are_saved_only_when_the_stage_pauses(
    every: int, plain: RunDir, tmp_path: Path
) -> None:
    run = without(plain, tmp_path, LEARN)
    lines = until_committed(run, LEARN, every)
    assert content(run, LEARN) == content(plain, LEARN)
    assert any("was finished by an earlier attempt" in line for line in lines)
    assert not any("written" in line for line in attempt(*undisturbed(plain, tmp_path)))


def undisturbed(plain: RunDir, tmp_path: Path) -> tuple[RunDir, Stage, int, Callable[[], bool]]:
    return without(plain, tmp_path / "again", LEARN), LEARN, 1, lambda: False


def test_a_stage_that_is_warned_after_its_last_phase_just_commits(plain: RunDir, tmp_path: Path) -> None:
    run = without(plain, tmp_path, LEARN)
    asked = Warned(10**9)
    attempt(run, LEARN, 1, asked)
    count = 10**9 - asked.left
    again = without(plain, tmp_path / "again", LEARN)
    assert not any("pauses" in line for line in attempt(again, LEARN, 1, Warned(count + 1)))
    assert content(again, LEARN) == content(plain, LEARN)


def test_resume_points_stay_with_the_party_and_go_when_the_stage_is_committed(
    plain: RunDir, tmp_path: Path
) -> None:
    run = without(plain, tmp_path, LEARN)
    outside = sorted(path for path in run.root.rglob("*") if "client-1" not in path.parts)
    attempt(run, LEARN, 1, Warned(30))
    assert sorted(path for path in run.root.rglob("*") if "client-1" not in path.parts) == outside
    points = list(run.resume(LEARN).iterdir())
    assert points and all(path.suffix == ".safetensors" for path in points)
    assert run.resume(LEARN).is_relative_to(run.party("client-1"))
    sweep(run, "client-1")
    assert sorted(run.resume(LEARN).iterdir()) == sorted(points), "not committed: the points are needed"
    attempt(run, LEARN, 2, Warned(10**9))
    assert not run.resume(LEARN).exists()
    run.resume(LEARN).mkdir()  # an attempt on a lost node that came too late
    sweep(run, "client-1")
    assert not run.resume(LEARN).exists()


# -- every safe point of one phase


def bare(folder: Path) -> RunDir:
    run = RunDir(folder)
    run.root.mkdir(parents=True)
    run.run_yaml.write_text("{}")
    return run


def paused_everywhere(
    folder: Path, work: Callable[[Resume], object], *, every: int = 2
) -> tuple[object, int]:
    """What work comes to when it is paused after every single unit, and how often that was.

    Args:
        every: a phase's beginning counts too, so a phase inside another needs 3.
    """
    run = bare(folder)
    for number in range(200):
        try:
            return work(Resume(run, LEARN, attempt=f"{number}-x", earlier=[], warned=Warned(every))), number
        except Paused:
            continue
    raise AssertionError("no end")


PROMPTS = [words(random_ids(random.Random(number), 2, 20)) for number in range(9)]
CONTINUED = {
    "partials": [words(random_ids(random.Random(number), 0, 4)) for number in range(9)],
    "stops": [None, "t1", "t2"] * 3,
    "seed": [*range(9)],
}


@pytest.mark.parametrize("architecture", ["gemma2", "qwen3"])
@pytest.mark.parametrize(
    ("how", "lora", "asked"),
    [
        ({"temperature": 0.0}, LORA, {"seed": 4}),
        ({"temperature": 0.9}, None, {"seed": 4}),
        ({"temperature": 0.9, "top_k": 30, "top_p": 0.9}, None, CONTINUED),
    ],
    ids=["greedy", "sampled", "continued"],
)
def test_generation_paused_after_every_token(
    architecture: str, how: dict[str, Any], lora: LoraOptions | None, asked: dict[str, Any], tmp_path: Path
) -> None:
    options = GenerationOptions(max_new_tokens=12, batch_size=4, **how)
    model = tiny_model(architecture, lora=lora)

    def work(resume: Resume | None) -> object:
        return generate(model, PROMPTS, options, **asked, resume=resume)

    found, pauses = paused_everywhere(tmp_path / "run", work)
    assert found == work(None), "the last bits of the confidence too"
    assert pauses > 12
    assert any(one.stopped for one in found) == ("stops" in asked)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("how", "asked"),
    [
        ({}, {}),
        ({}, {"partials": ["t9", *CONTINUED["partials"][1:]]}),
        ({}, {"partials": None}),
        ({}, {"stops": [*CONTINUED["stops"][:-1], "t3"]}),
        ({}, {"stops": None}),
        ({}, {"seed": [*range(8), 9]}),
        ({}, {"seed": 4}),
        ({}, {"expected_lengths": [*range(9)]}),
        ({"top_k": 29}, {}),
        ({"top_p": 0.8}, {}),
        ({"temperature": 0.8}, {}),
        ({"max_new_tokens": 11}, {}),
    ],
    ids=str,
)
def test_a_point_of_generation_holds_for_the_very_same_request(
    how: dict[str, Any], asked: dict[str, Any], whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADA_RESUME_MIN_SECONDS", "0")
    model, run = tiny_model(), bare(tmp_path / "run")
    usual = {"max_new_tokens": 12, "batch_size": 4, "temperature": 0.9, "top_k": 30, "top_p": 0.9}

    def work(resume: Resume | None, how: dict[str, Any], asked: dict[str, Any]) -> object:
        options = GenerationOptions.model_validate(usual | how)
        return generate(model, PROMPTS, options, **(CONTINUED | asked), resume=resume)

    early = Resume(run, LEARN, attempt="01-x", earlier=[], warned=(lambda: False) if whole else Warned(5))
    with contextlib.nullcontext() if whole else pytest.raises(Paused):
        work(early, {}, {})
    log: list[str] = []
    found = work(Resume(run, LEARN, attempt="02-x", earlier=[], log=log.append), how, asked)
    assert found == work(None, how, asked)
    same = "was finished by an earlier" if whole else "goes on where"
    assert (same if not how and not asked else "is of another request") in log[0]


class Counter:
    """Hooks with a memory: every batch loses its first example but one in three."""

    def __init__(self) -> None:
        self.seen = 0
        self.weights = torch.zeros(2)

    def keep(self, batch: list[Example]) -> list[Example]:
        return batch if self.seen % 3 == 0 else batch[1:]

    def after_step(self, log: StepLog) -> None:
        self.seen += 1
        self.weights += log.objective

    def state(self) -> Saved:
        return Saved({"weights": self.weights}, self.seen)

    def load_state(self, saved: Saved) -> None:
        self.seen, self.weights = saved.values, saved.tensors["weights"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [LoraOptions(rank=4, alpha=8, dropout=0.3), None], ids=["lora", "full"])
def test_training_paused_after_every_step(
    dtype: str, lora: LoraOptions | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADA_RESUME_MIN_SECONDS", "0")
    options = TrainOptions(learning_rate=1e-2, batch_size=3, epochs=2, weight_decay=0.1, micro_tokens=60)
    examples = with_reference(random_pairs(8), [(-9.0, -9.5)] * 8)

    def work(resume: Resume | None) -> object:
        model, counter = tiny_model(lora=lora, dtype=dtype), Counter()
        hooks = Hooks(counter.keep, counter.after_step, memory=counter)
        logs = fit(
            model, examples, options, PairLoss(), learning_rate=1e-2, seed=5, hooks=hooks, resume=resume
        )
        assert not model.network.training
        again = sequence_log_probs(model, examples, micro_tokens=40, head_chunk=7, resume=resume)
        return logs, state_hash(model.state()), counter.seen, counter.weights.tolist(), again

    found, pauses = paused_everywhere(tmp_path / "run", work)
    assert found == work(None)
    assert pauses > 10


class Asking(Counter):
    """Hooks that ask the model itself, in a phase of their own, before every third batch."""

    def __init__(self, model: LanguageModel, resume: Resume | None) -> None:
        super().__init__()
        self.model, self.resume = model, resume
        self.batches = 0

    def keep(self, batch: list[Example]) -> list[Example]:
        if self.batches % 3 == 0:
            options = GenerationOptions(max_new_tokens=4, batch_size=4)
            said = generate(self.model, PROMPTS[:5], options, resume=self.resume)
            self.weights = self.weights + sum(one.confidence for one in said)
        self.batches += 1
        return [replace(one, terms=(replace(one.terms[0], weight=float(self.weights[0])),)) for one in batch]

    def state(self) -> Saved:
        return Saved({"weights": self.weights}, [self.seen, self.batches])

    def load_state(self, saved: Saved) -> None:
        (self.seen, self.batches), self.weights = saved.values, saved.tensors["weights"]


@pytest.mark.parametrize("lora", [LoraOptions(rank=4, alpha=8, dropout=0.3), None], ids=["lora", "full"])
def test_training_paused_inside_the_phases_of_its_hooks(
    lora: LoraOptions | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADA_RESUME_MIN_SECONDS", "0")
    options = TrainOptions(learning_rate=1e-2, batch_size=3, epochs=2, micro_tokens=60)
    logs: list[str] = []

    def work(resume: Resume | None) -> object:
        if resume is not None:
            resume._log = logs.append
        model = tiny_model(lora=lora)
        asking = Asking(model, resume)
        hooks = Hooks(asking.keep, asking.after_step, memory=asking)
        loss = PairLoss(kind="cross_entropy")
        steps = fit(
            model, random_pairs(8), options, loss, learning_rate=1e-2, seed=5, hooks=hooks, resume=resume
        )
        again = generate(model, PROMPTS[:2], GenerationOptions(max_new_tokens=4), resume=resume)
        return steps, state_hash(model.state()), asking.weights.tolist(), again

    found, pauses = paused_everywhere(tmp_path / "run", work, every=3)
    assert found == work(None)
    assert pauses > 10
    gone_on = {found[1] for line in logs if (found := re.match(r"phase ([\d-]+) \(generate\) goes on", line))}
    assert gone_on == {"00001-00000-1", "00001-00003-1", "2"}


def test_knowledge_paused_after_every_pass(tmp_path: Path) -> None:
    model = tiny_model()
    examples = [replace(one, responses=one.responses[:1]) for one in random_pairs(8)]

    def work(resume: Resume | None) -> object:
        found = top_knowledge(
            model, examples, [5] * 8, num_top=3, num_tokens=60, micro_tokens=30, head_chunk=7, resume=resume
        )
        return {name: one.tolist() for name, one in found.tensors().items()}

    found, pauses = paused_everywhere(tmp_path / "run", work)
    assert found == work(None)
    assert pauses > 3


def test_training_on_other_soft_targets_does_not_use_a_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADA_RESUME_MIN_SECONDS", "0")
    run, log = bare(tmp_path / "run"), []
    options = TrainOptions(learning_rate=1e-2, batch_size=4, epochs=1, micro_tokens=100)

    def work(share: float) -> None:
        found = [replace(one, responses=one.responses[:1]) for one in random_pairs(4)]
        found = [
            replace(one, soft=SoftTargets(torch.ones(len(r), 1).long(), torch.full((len(r), 1), share), 1.0))
            for one in found
            for r in one.responses
        ]
        resume = Resume(run, LEARN, attempt="01-x", earlier=[], log=log.append)
        fit(tiny_model(), found, options, SoftLoss(), learning_rate=1e-2, seed=5, resume=resume)

    work(1.0)
    work(1.0)
    assert "was finished" in log[-1]
    work(0.5)
    assert any("is of another request" in line for line in log)


# -- points that must not be used


def damage_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def damage_a_value(path: Path) -> None:
    data = path.read_bytes()
    found = re.search(rb"drawn\W+(\d)", data)
    assert found is not None
    path.write_bytes(data[: found.start(1)] + b"7" + data[found.end(1) :])


@pytest.fixture(scope="module")
def in_fit(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, int]:
    """A run that is paused after the second step of training, and the number of that phase."""
    for count in range(2, 200):
        run = without(runs("full"), tmp_path_factory.mktemp("paused"), LEARN)
        lines = attempt(run, LEARN, 1, Warned(count))
        found = re.search(r"pauses in phase (\d+) \(fit\)", lines[-1])
        if found and b'drawn\\": 2' in b"".join(path.read_bytes() for path in run.resume(LEARN).iterdir()):
            return run, int(found[1])
    raise AssertionError("never inside training")


@pytest.mark.parametrize(
    "damage",
    [
        damage_a_byte,
        damage_a_value,
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 64),
        lambda path: path.write_bytes(b"\x02\0\0\0\0\0\0\0{}"),
    ],
    ids=["flipped byte", "edited value", "half", "empty", "not safetensors", "no metadata"],
)
def test_a_broken_point_is_ignored(
    damage: Callable[[Path], object], in_fit: tuple[RunDir, int], plain: RunDir, tmp_path: Path
) -> None:
    paused, number = in_fit
    run = RunDir(tmp_path / paused.root.name)
    shutil.copytree(paused.root, run.root)
    damage(run.resume(LEARN) / f"{number:05d}.safetensors")
    (run.resume(LEARN) / ".00001.safetensors.00-killed.tmp").write_bytes(b"half")
    lines = attempt(run, LEARN, 2, Warned(10**9))
    assert [line for line in lines if f"phase {number} (fit) is broken" in line and "begins anew" in line]
    assert content(run, LEARN) == content(plain, LEARN)
    assert not run.resume(LEARN).exists()


def test_a_point_of_another_request_is_ignored(plain: RunDir, tmp_path: Path) -> None:
    run = without(plain, tmp_path, LEARN)
    attempt(run, LEARN, 1, Warned(60), divisor=2)
    lines = attempt(run, LEARN, 2, Warned(10**9))
    assert any("is of another request: ignored" in line for line in lines)
    assert not any("goes on" in line or "was finished" in line for line in lines)
    assert content(run, LEARN) == content(plain, LEARN)


def change_run_yaml(run: RunDir) -> None:
    run.run_yaml.write_text(run.run_yaml.read_text() + "\n")


def change_code(run: RunDir) -> None:
    then = json.loads(run.provenance_json.read_text())
    run.provenance_json.write_text(json.dumps({**then, "code": "0" * 64}))


def change_own_commit(run: RunDir) -> None:
    path = run.commit(PREPARE) / "manifest.json"
    path.write_text(path.read_text() + "\n")


def nothing(run: RunDir) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "used"),
    [(nothing, True), (change_run_yaml, False), (change_code, False), (change_own_commit, False)],
)
def test_a_point_holds_only_for_the_run_it_was_made_in(
    change: Callable[[RunDir], None], used: bool, plain: RunDir, tmp_path: Path
) -> None:
    run = without(plain, tmp_path, LEARN)

    def phase() -> str:
        lines: list[str] = []
        resume = Resume(run, LEARN, attempt="01-x", earlier=["r00-prepare"], log=lines.append)
        assert begin(resume, "generate", ["a prompt"], 7).point is None
        return lines[-1] if lines else ""

    resume = Resume(run, LEARN, attempt="01-x", earlier=["r00-prepare"])
    resume._min_seconds = 0
    begin(resume, "generate", ["a prompt"], 7).finish(lambda: Saved({"x": torch.ones(2)}, [0.1]))
    change(run)
    assert ("was finished" in phase()) == used


def test_what_was_read_and_asked_before_counts_too(plain: RunDir, tmp_path: Path) -> None:
    run = without(plain, tmp_path, LEARN)

    def result(first: str, message: str, *, save: bool = False) -> Saved | None:
        resume = Resume(run, LEARN, attempt="01-x", earlier=[])
        resume._min_seconds = 0
        begin(resume, "fit", first)
        resume.inputs = {"server/client-1/r01-respond": message}
        phase = begin(resume, "fit", "second")
        if save:
            phase.finish(lambda: Saved({}, {"value": 0.1 + 0.2}))
        return phase.result

    result("first", "m", save=True)
    assert result("first", "m") == Saved({}, {"value": 0.1 + 0.2})
    assert result("other", "m") is None
    result("first", "m", save=True)
    assert result("first", "n") is None


# -- a full disk, a wrong setting


def full(path: Path, data: bytes) -> None:
    path.write_bytes(data[:10])
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_pause_on_a_full_disk_is_no_pause_and_leaves_nothing(
    plain: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = without(plain, tmp_path, LEARN)
    monkeypatch.setattr("lada.resume.write_synced", full)
    with pytest.raises(NoSpaceError, match="No space left on device"):
        attempt(run, LEARN, 1, Warned(30))
    assert list(run.resume(LEARN).iterdir()) == []


def test_a_result_that_cannot_be_saved_stops_nothing(
    plain: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LADA_RESUME_MIN_SECONDS", "0")
    monkeypatch.setattr("lada.resume.write_synced", full)
    run = without(plain, tmp_path, LEARN)
    lines = attempt(run, LEARN, 1, lambda: False)
    assert any("could not be written: [Errno 28]" in line for line in lines)
    assert content(run, LEARN) == content(plain, LEARN)


def test_a_setting_that_is_no_number_is_a_mistake(plain: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADA_RESUME_MIN_SECONDS", "soon")
    with pytest.raises(ConfigError, match="legal: a number of seconds"):
        Resume(plain, LEARN, attempt="01-x", earlier=[])


# -- a true signal


def step(run: RunDir, stage: Stage, name: str) -> subprocess.Popen[str]:
    """`python -m lada step` in a process of its own, which begins with USR2 blocked."""
    command = [sys.executable, "-m", "lada", "step", "--run", str(run.root), "--party", stage.party]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        return subprocess.Popen(
            [*command, "--stage", stage.name, "--attempt", name],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


def test_usr2_twice_gives_exit_85_and_the_next_attempt_finishes_to_the_same_bytes(
    plain: RunDir, tmp_path: Path
) -> None:
    run = without(plain, tmp_path, LEARN)
    early = step(run, LEARN, "01-a")
    early.send_signal(signal.SIGUSR2)  # before Python itself has begun
    output, _ = early.communicate(timeout=300)
    assert early.returncode == 85, output
    assert output.splitlines()[-1].startswith("Paused: client-1/r01-learn was warned and pauses in phase 1")

    amid = step(run, LEARN, "02-b")
    assert amid.stdout is not None
    assert "client-1/r01-learn attempt 02-b begins" in amid.stdout.readline()
    amid.send_signal(signal.SIGUSR2)
    amid.send_signal(signal.SIGUSR2)
    output, _ = amid.communicate(timeout=300)
    assert amid.returncode == 85, output
    assert not run.is_committed(LEARN)

    last = step(run, LEARN, "03-c")
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    assert content(run, LEARN) == content(plain, LEARN)
    assert not (run.root / "logs" / "client-1" / "r01-learn.03-c.log").exists(), "a container has no logs/"
