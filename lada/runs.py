"""Making a run's folder: configuration, plan and data, each written once; same request, same folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lada import provenance
from lada.config import SERVER, RunConfig
from lada.data import Federation, Request, load_federation
from lada.errors import ChangedError, ConfigError
from lada.exchange import exchange_root
from lada.faults import crash_point
from lada.lab import weights_folder
from lada.layers import Layer, dump_run, read_run, resolve
from lada.lease import lease
from lada.method import load_method, make_plan
from lada.model_facts import with_model_facts
from lada.plan import read_plan
from lada.records import Item, Record, Replayed, dump_jsonl
from lada.replay import find_replayed, selections
from lada.rundir import RunDir, dump_json, set_aside, sha256, write_atomic
from lada.staged import data_file, is_rehearsed, weights_digest


def resolve_run(found: Iterable[Layer]) -> RunConfig:
    """Layers to the whole configuration, the method's own options included, every default spelled out.

    Raises:
        ConfigError: naming file, key and what is legal.
    """
    config, origins = resolve(with_model_facts(list(found)))
    method = load_method(config.method, origins)
    options = method.options.model_dump(mode="json")
    return config.model_copy(update={"method": {"name": method.name, **options}})


def open_run(
    found: Iterable[Layer],
    runs: Path,
    *,
    amend: bool = False,
    fresh: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> tuple[RunDir, list[str]]:
    """The folder of a run, made if it is not there yet.

    Args:
        facts: of the host, where this process runs in an image; see `provenance.collect`.

    Returns:
        The folder and remarks for a person.

    Raises:
        ConfigError, DataError: the request cannot be served.
        ChangedError: the run began with other code, packages, weights, image or run.yaml.
    """
    config = resolve_run(found)
    run = RunDir(runs / config.run_id)
    if fresh and run.root.exists():
        with lease(run.lease):  # not under the feet of a driver that is at work
            set_aside(run.root)
    if not run.run_yaml.is_file():
        return run, _create(run, config, provenance.collect(dump_run(config), _weights(config), facts))
    return run, check_run(run, amend=amend, facts=facts)


def check_run(run: RunDir, *, amend: bool = False, facts: Mapping[str, Any] | None = None) -> list[str]:
    """Compare a run with what it began with.

    Returns:
        Remarks for a person.

    Raises:
        ChangedError: it began with other code, packages, weights, image or run.yaml.
    """
    config, plan = read_run(run.root), read_plan(run)
    if make_plan(config, load_method(config.method)).steps != plan.steps:
        raise ChangedError(f"{run.run_yaml} was edited: its steps are not the plan's. FRESH=1 starts anew")
    now = provenance.collect(run.run_yaml.read_text(encoding="utf-8"), _weights(config), facts)
    finished = next(plan.pending(run.is_committed), None) is None
    remark = provenance.check(run, now, amend=amend, finished=finished)
    return [remark] if remark else []


def model_folder(config: RunConfig) -> Callable[[str], Path]:
    """Where the files of a model lie: committed lab weights, or the folder that LADA_MODELS names."""
    if config.tier == "lab":
        return weights_folder
    root = os.environ.get("LADA_MODELS")
    if root is None:
        raise ConfigError(f"tier {config.tier} needs LADA_MODELS=<folder with one sub-folder per model>")
    return lambda model: _of_its_tier(Path(root) / model.rpartition("/")[2], config.tier)


def _of_its_tier(folder: Path, tier: str) -> Path:
    """Refuse random weights in the paper tier, and real ones in its rehearsal: results would not tell."""
    if folder.is_dir() and is_rehearsed(folder) != (tier == "rehearsal"):
        what = "has random weights, of a rehearsal" if tier == "paper" else "is no rehearsal model"
        raise ConfigError(f"{folder} {what}, and the run is of tier {tier}: name another folder of models")
    return folder


def _create(run: RunDir, config: RunConfig, now: dict[str, Any]) -> list[str]:
    plan = make_plan(config, load_method(config.method))
    replay = None
    if config.replayed is not None:
        replay = selections(find_replayed(config.replayed, run.root.parent), config)
    federation = load_federation(config.dataset.loader, _request(config))
    _write_data(run, config, federation, replay or {})
    crash_point("init.data-written")
    write_atomic(run.plan_json, dump_json(plan.model_dump(mode="json")))
    write_atomic(run.provenance_json, dump_json(now))
    exchange_root(run).mkdir(parents=True, exist_ok=True)
    # run.yaml comes last: where it is, the folder is whole.
    write_atomic(run.run_yaml, dump_run(config))
    crash_point("init.run-written")
    notes = federation.notes.get("warnings", [])
    return [str(note) for note in notes]


def _request(config: RunConfig) -> Request:
    seed = config.dataset.split_seed
    file = config.dataset.file
    return Request(
        dataset=config.dataset.name,
        server=config.party(SERVER).model,
        clients={name: config.party(name).model for name in config.clients},
        num_train=config.data.num_train,
        num_test=config.data.num_test,
        num_public=config.data.num_public,
        seed=config.seed if seed is None else seed,
        # A staged file's place is a fact of the site, so that it does not stand in run.yaml.
        file=data_file(config.dataset.name) if file is None else Path(file),
    )


def _write_data(
    run: RunDir, config: RunConfig, federation: Federation, replay: Mapping[str, Sequence[Replayed]]
) -> None:
    parts: dict[Path, list[Record]] = {
        run.public: [item.public() for item in federation.public],
        run.sealed: list(federation.public),
        run.demo: [federation.demo],
    }
    union: list[Item] = []
    for name in config.clients:
        parts[run.data(name, "train")] = [item.without_rationale() for item in federation.train[name]]
        parts[run.data(name, "test")] = [item.without_rationale() for item in federation.test[name]]
        union += federation.test[name]
    parts[run.data(SERVER, "test")] = [item.without_rationale() for item in union]
    for party, chosen in replay.items():
        parts[run.data(party, "replay")] = list(chosen)
    if config.opens_answers:
        # The one route by which a party sees public answers: run id and every results row say "oracle".
        for one in config.parties:
            parts[run.data(one.name, "answers")] = [item.without_rationale() for item in federation.public]
    files = {}
    for path, records in parts.items():
        text = dump_jsonl(records)
        write_atomic(path, text)
        files[path.relative_to(run.root).as_posix()] = {
            "rows": len(records),
            "sha256": sha256(text.encode()),
            "ids": [getattr(record, "id", "") for record in records],
        }
    notes = json.loads(json.dumps(federation.notes))
    manifest = {"dataset": config.dataset.name, "files": files, "notes": notes}
    write_atomic(run.root / "sealed" / "manifest.json", dump_json(manifest))


def _weights(config: RunConfig) -> dict[str, str]:
    folder = model_folder(config)
    return {party.model: weights_digest(folder(party.model)) or "missing" for party in config.parties}
