"""Checks of what `make stage` left: models and data against the lock, without reading their bytes again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jobs.cluster import Cluster
from jobs.finding import Finding, ok, warn
from jobs.staging_disk import HIDDEN, check_model, locked
from jobs.staging_lock import Lock, differences, listed, read_lock
from jobs.staging_plan import Wanted, wanted_data, wanted_models
from jobs.words import size
from lada.errors import ConfigError, ModelError
from lada.layers import CONFIGS
from lada.staged import is_rehearsed, is_unchanged, models_of, read_record, read_sources

STAGE = "paper tier only: make stage, where there is a network"


def check_staged(cluster: Cluster) -> Iterator[Finding]:
    """Staged models and data of a cluster's folders; nothing where it names none.

    Models that are not there at all are the business of `check_models`.
    """
    try:
        sources, lock = read_sources(), read_lock()
        models, data = cluster.models_path, cluster.data_path
    except ConfigError as error:
        yield warn("staging", str(error), "configs/staging.yaml, configs/staging.lock.json, the cluster file")
        return
    if models is not None and models.is_dir():
        names = sorted(path.stem for path in (CONFIGS / "scenarios").glob("*.yaml"))
        there = [one for one in wanted_models(models_of(names), models, sources) if one.folder.is_dir()]
        found = [one for one in there if not is_rehearsed(one.folder)]
        yield from _of_a_rehearsal(sorted({one.folder.name for one in there if one not in found}))
        yield from _judge("staged models", found, lock)
        yield from _unfinished("staged models", models)
    if data is not None:
        wanted = wanted_data(sources.datasets, data, sources)
        found = [one for one in wanted if one.folder.is_dir()]
        missing = [one.folder.name for one in wanted if one not in found]
        yield from _judge("staged data", found, lock)
        if data.is_dir():
            yield from _unfinished("staged data", data)
        if missing:
            yield warn("data", f"no {', '.join(missing)} in {data}", f"{STAGE}, DATASET={missing[0]}")


def _judge(subject: str, found: list[Wanted], lock: Lock) -> Iterator[Finding]:
    wrong = {one.folder.name: why for one in found if (why := _wrong(one, lock))}
    if wrong:
        lines = [f"{name}: {why}" for name, why in wrong.items()]
        yield warn(subject, listed(lines), "paper tier only: make stage says more, FULL=1 reads every byte")
    elif found:
        yield ok(subject, f"{', '.join(one.folder.name for one in found)}: as in the lock")


def _of_a_rehearsal(names: list[str]) -> Iterator[Finding]:
    if names:
        yield ok("rehearsal models", f"{', '.join(names)}: random weights, for TIER=rehearsal alone")


def _wrong(one: Wanted, lock: Lock) -> str:
    """What speaks against a folder; empty where nothing does."""
    record = read_record(one.folder)
    entry = lock.of(one.repository.kind, one.repository.name)
    if one.repository.kind == "model":
        try:
            check_model(one.folder)
        except ModelError as error:
            return str(error)
    if record is None:
        return "not verified: no record of `make stage`"
    changed = [name for name, known in record.files.items() if not is_unchanged(one.folder / name, known)]
    if changed:
        return f"changed since it was staged: {listed(changed)}"
    if record.revision is None or not entry.files:
        return "not verified: the lock has no sha256 of it"
    expected = {name: file for name, file in entry.files.items() if name in record.files}
    return listed(differences(expected, {name: locked(record.files)[name] for name in expected}))


def _unfinished(subject: str, folder: Path) -> Iterator[Finding]:
    """What a staging that ended early has left; the next one goes on with it."""
    parts = [path for path in (folder / HIDDEN).glob("*@*") if path.is_dir()]
    if parts:
        count = sum(file.stat().st_size for part in parts for file in part.rglob("*") if file.is_file())
        names = ", ".join(sorted(part.name.partition("@")[0] for part in parts))
        yield warn(
            subject,
            f"{names}: half fetched, {size(count)} in {folder / HIDDEN}",
            "make stage goes on with them; else remove that folder",
        )
