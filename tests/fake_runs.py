"""Run folders without models: real configuration, plan, commits and messages, made-up content, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from lada.config import RunConfig
from lada.driver import Driver, Ended
from lada.exchange import commit, exchange_root, publish
from lada.layers import dump_run, layers, resolve
from lada.manifest import Outbox, Payload
from lada.plan import Plan, PlannedStep
from lada.policy import Change
from lada.records import Item, Record, Response, Reward, SampleId, SampleLog, dump_jsonl
from lada.rundir import RunDir, Stage, dump_json, write_atomic

IDS = tuple(f"q{number}" for number in range(6))
PREPARE = PlannedStep(name="prepare", roles=("server", "client"), once=True)
RESPOND = PlannedStep(name="respond", roles=("server", "client"))
LEARN = PlannedStep(name="learn", roles=("server", "client"))


def tiny_config(*settings: str, scenario: str = "one-client", method: str = "lada") -> RunConfig:
    found = layers(scenario=scenario, method=method, dataset="lab-math", size="tiny", settings=settings)
    return resolve(found)[0]


def item(name: str, *, answer: str = "A") -> Item:
    options = tuple(f"{name} option {letter}" for letter in "ABCD")
    return Item.model_validate(
        {"id": name, "question": f"What is {name}?", "options": options, "answer": answer}
    )


def make_run(root: Path, *settings: str, steps: Sequence[PlannedStep] = (PREPARE, RESPOND, LEARN)) -> RunDir:
    """A folder with run.yaml, plan.json and data, ready for a driver."""
    config, run = tiny_config(*settings), RunDir(root / "run")
    plan = Plan(
        run_id=config.run_id,
        method="lada",
        rounds=config.rounds,
        parties=tuple(party.name for party in config.parties),
        steps=tuple(steps),
    )
    items = [item(name) for name in IDS]
    write_atomic(run.run_yaml, dump_run(config))
    write_atomic(run.plan_json, dump_json(plan.model_dump(mode="json")))
    write_atomic(run.public, dump_jsonl(one.public() for one in items))
    write_atomic(run.sealed, dump_jsonl(items))
    exchange_root(run).mkdir()
    return run


def records(kind: str, found: Iterable[Record]) -> Payload:
    listed = list(found)
    return Payload(kind, len(listed), dump_jsonl(listed).encode())  # type: ignore[arg-type]


def adapter(value: float = 0.5, *, shape: tuple[int, ...] = (2, 3)) -> bytes:
    return bytes(save({"layer.weight": np.full(shape, value, dtype=np.float32)}))


def full_outbox(stage: Stage) -> Outbox:
    """One file of every kind that may be published, and the private files that the host side reads."""
    other = "server" if stage.party != "server" else "client-1"
    outbox = Outbox()
    outbox.send(other, "ids.jsonl", records("ids", [SampleId(id=name) for name in IDS[:3]]))
    texts = [Response(id=name, text=f"so {stage}\nThe answer is A") for name in IDS[:3]]
    outbox.send(other, "responses.jsonl", records("responses", texts))
    outbox.send("all", "rewards.jsonl", records("rewards", [Reward(id="q0", partner=other, reward=0.5)]))
    outbox.send("all", "adapter.safetensors", Payload("adapters", 1, adapter()))
    accuracy = f'{{"accuracy": 0.{stage.round + 1}, "step_{stage.step}": 1.0}}\n'.encode()
    outbox.private["metrics.json"] = Payload("metrics", 1, accuracy)
    logs = [SampleLog(id="q0", partner=other, selected_by="filter", chosen="A", rejected="B", reward=0.5)]
    outbox.private["samples.jsonl"] = records("diagnostics", logs)
    outbox.private["state/memory.json"] = Payload("state", 1, b'{"secret": 1}\n')
    return outbox


def commit_stage(run: RunDir, stage: Stage, *, attempt: str = "01-a", outbox: Outbox | None = None) -> bool:
    content = full_outbox(stage) if outbox is None else outbox
    return commit(run, stage, content, attempt=attempt, run_id="run", inputs={})


def commit_and_publish(run: RunDir, stage: Stage, attempt: str = "01-a") -> Path:
    commit_stage(run, stage, attempt=attempt)
    publish(run, stage)
    return run.commit(stage)


Behaviour = Callable[[RunDir, Stage, str], int]


def good(run: RunDir, stage: Stage, attempt: str) -> int:
    """Commits and publishes, as every stage should."""
    commit_and_publish(run, stage, attempt)
    return 0


class ScriptedLauncher:
    """Stands in for real stages: each attempt of a stage does what its script says next, else `good`.

    Attributes:
        started: every attempt, in order, as ``party/stage``.
        changes: what each attempt got that the first had not.
        polls: how often the driver asked.
    """

    def __init__(self, run: RunDir, script: dict[str, list[Behaviour]] | None = None) -> None:
        self.run, self.script = run, script or {}
        self.started: list[str] = []
        self.changes: list[Change] = []
        self.polls = 0
        self._ended: list[Ended] = []

    def start(self, stage: Stage, attempt: str, change: Change) -> dict[str, object]:
        self.started.append(str(stage))
        self.changes.append(change)
        todo = self.script.get(str(stage), [])
        code = (todo.pop(0) if todo else good)(self.run, stage, attempt)
        self._ended.append(Ended(stage, code, f"scripted {code}" if code else "", 0.25))
        return {}

    def adopt(self, stage: Stage) -> None:
        return None

    def poll(self) -> list[Ended]:
        self.polls += 1
        ended, self._ended = self._ended, []
        return ended


def drive(run: RunDir, script: dict[str, list[Behaviour]] | None = None, **options: int) -> ScriptedLauncher:
    """Drive a run to its end with a scripted launcher."""
    launcher = ScriptedLauncher(run, script)
    Driver(run, launcher, poll_seconds=0.0).drive(**options)
    return launcher
