"""What the parties of a finished run selected, for a run that replays it (baselines, section 6a).

Read by the host when a run is made; each party is given its own part as private data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lada.config import RunConfig, nested
from lada.errors import ConfigError
from lada.layers import read_run
from lada.manifest import read_manifest
from lada.plan import read_plan
from lada.records import Replayed, SampleId, read_jsonl
from lada.rundir import RunDir, Stage

SAME = ("tier", "dataset", "data", "shots", "seed", "template", "local")
"""Parts of the configuration in which both runs must agree: ids mean the same, and so do the models."""


def find_replayed(name: str, runs: Path) -> RunDir:
    """The run that an option ``replay`` names: a run id beside the new run, or a folder.

    Raises:
        ConfigError: listing the runs that are there.
    """
    for folder in (runs / name, Path(name)):
        if (folder / "run.yaml").is_file():
            return RunDir(folder)
    there = sorted(path.parent.name for path in runs.glob("*/run.yaml"))
    raise ConfigError(f"replay: there is no run '{name}'; in {runs} there are: {', '.join(there) or 'none'}")


def selections(run: RunDir, config: RunConfig) -> dict[str, list[Replayed]]:
    """Party -> what it selected, by round, partner and id.

    Args:
        run: a finished run whose method has LaDa's selection.
        config: of the run that replays it.

    Raises:
        ConfigError: when the runs do not fit, or the ids come from the sealed answers and the new run does
            not say so.
    """
    _check(run, config)
    public = {question.id for question in run.public_questions()}
    found: dict[str, list[Replayed]] = {party.name: [] for party in config.parties}
    for group in read_plan(run).groups():
        for stage in group:
            found[stage.party] += _asked(run, stage)
    if any(one.id not in public for chosen in found.values() for one in chosen):
        raise ConfigError(f"replay: {run.root.name} selected among questions that its own server wrote")
    for party, chosen in found.items():
        keys = {(one.round, one.partner, one.id) for one in chosen}
        assert len(keys) == len(chosen), f"{party} asks for the same sample twice in a round"
        chosen.sort(key=lambda one: (one.round, one.partner, one.id))
    return found


def _asked(run: RunDir, stage: Stage) -> Iterator[Replayed]:
    """The ids that a stage asked for: they are for the round after it."""
    folder = run.commit(stage)
    for entry in read_manifest(folder, stage.party, stage.name).files:
        if entry.kind == "ids":
            partner = entry.path.split("/")[1]
            for record in read_jsonl(SampleId, folder / entry.path):
                yield Replayed(round=stage.round + 1, partner=partner, id=record.id)


def _check(run: RunDir, config: RunConfig) -> None:
    other = read_run(run.root)
    name = run.root.name
    if "select" not in {key for key, _ in nested(other.method)}:
        raise ConfigError(f"replay: {name} is a run of {other.method_label}, which selects nothing")
    if next(read_plan(run).pending(run.is_committed), None) is not None:
        raise ConfigError(f"replay: {name} is not finished")
    differing = [key for key in SAME if getattr(other, key) != getattr(config, key)]
    if [(one.name, one.model) for one in other.parties] != [(one.name, one.model) for one in config.parties]:
        differing.append("parties")
    if differing:
        raise ConfigError(f"replay: {name} differs from this run in {', '.join(differing)}")
    if other.rounds < config.rounds:
        raise ConfigError(f"replay: {name} has {other.rounds} rounds, this run {config.rounds}")
    if other.opens_answers and not config.opens_answers:
        raise ConfigError(f"replay: {name} selected with the sealed answers, this run is not called oracle")
