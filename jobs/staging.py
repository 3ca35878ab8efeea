"""`make stage SCENARIO=1 DATASET=mathinstruct`: models and data for runs that see no network, verified.

Commits, sizes and sha256 are pinned in configs/staging.lock.json. What has a model's name is whole, and is
what the lock says. The same command again goes on, or verifies; runs then find everything by name.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from jobs.cluster import Cluster, find_cluster
from jobs.staging_disk import check_model, check_space
from jobs.staging_fetch import download
from jobs.staging_lock import StagingError, read_lock
from jobs.staging_plan import Download, Wanted, is_staged, plan, take, wanted_data, wanted_models
from jobs.words import size
from lada.errors import ConfigError, NoSpaceError
from lada.layers import read_yaml, shipped
from lada.space import is_full
from lada.staged import Sources, models_of, read_sources


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `stage`."""
    parser = commands.add_parser(
        "stage", help="fetch models and data, where there is a network; pinned, verified"
    )
    parser.add_argument(
        "--scenario", nargs="*", default=["1"], help="names in configs/scenarios, or YAML files"
    )
    parser.add_argument("--dataset", nargs="*", default=[], help="names in configs/datasets")
    parser.add_argument("--model", nargs="*", default=[], help="further models, by hub's name")
    parser.add_argument("--cluster", help="name in configs/clusters; default: the cluster of this host")
    parser.add_argument("--models", help="folder with one sub-folder per model: use them, fetch none")
    parser.add_argument("--full", action="store_true", help="read every byte again of what is staged already")
    parser.add_argument("--dry", action="store_true", help="say what would be fetched, and fetch nothing")
    parser.set_defaults(command=stage)


def stage(options: argparse.Namespace) -> int:
    """Stage what the options name; returns an exit code.

    Raises:
        StagingError: the hub, or a difference from the lock. ConfigError: a name or a folder is wrong.
        NoSpaceError: the disk has no room for it.
    """
    try:
        return _stage(options)
    except OSError as error:
        if is_full(error):
            raise NoSpaceError(f"{error.filename}: {error.strerror}") from error
        raise StagingError(f"{error.filename}: {error.strerror}") from error


def _stage(options: argparse.Namespace) -> int:
    sources, lock = read_sources(), read_lock()
    models = models_of([*options.scenario]) + options.model
    datasets = _datasets(options.dataset, sources)
    folders = _folders(options, with_data=bool(datasets))
    of_models = wanted_models(dict.fromkeys(models), folders["models"], sources)
    todo = wanted_data(datasets, folders["data"], sources) if datasets else []
    if options.models:
        _take_all(of_models, full=options.full)
    else:
        todo = of_models + todo
    missing = []
    for one in todo:
        if is_staged(one, lock, full=options.full):
            _say(f"{one.repository}: staged, as in the lock: {one.folder}")
        else:
            missing.append(one)
    downloads = plan(missing, lock, sources.branch, _say)
    for each in downloads:
        _say(_line(each))
    if options.dry:
        return 0
    for folder in {each.wanted.folder.parent for each in downloads}:
        folder.mkdir(parents=True, exist_ok=True)
    check_space(_needs(downloads))
    for each in downloads:
        download(each, _say)
    _say(_closing(options, folders))
    return 0


def _datasets(names: list[str], sources: Sources) -> list[str]:
    """Data sets that have a file to stage; the lab's are made by the run itself.

    Raises:
        ConfigError: no such data set, or none that is known to the hub.
    """
    found = []
    for name in names:
        if name in sources.datasets:
            found.append(name)
        elif read_yaml(shipped("datasets", name)).get("dataset", {}).get("loader") != "lab":
            raise ConfigError(
                f"configs/staging.yaml does not say where data set '{name}' comes from; it knows "
                f"{', '.join(sources.datasets)}. Give its file to a run as DATA=<file>"
            )
    return list(dict.fromkeys(found))


def _folders(options: argparse.Namespace, *, with_data: bool) -> dict[str, Path]:
    """Where models and data belong: as the cluster file says, else LADA_MODELS and LADA_DATA.

    Raises:
        ConfigError: neither says.
    """
    cluster = None
    known = (options.models or os.environ.get("LADA_MODELS")) and (
        not with_data or os.environ.get("LADA_DATA")
    )
    if options.cluster or not known:
        try:
            cluster = find_cluster(options.cluster)
        except ConfigError as error:
            raise ConfigError(
                f"{error}. Without a cluster: LADA_MODELS=<folder>, LADA_DATA=<folder>"
            ) from error
    models = Path(options.models) if options.models else _place(cluster, "models", "LADA_MODELS")
    found = {"models": models.absolute()}
    if with_data:
        found["data"] = _place(cluster, "data", "LADA_DATA")
    return found


def _place(cluster: Cluster | None, what: str, variable: str) -> Path:
    named = None
    if cluster is not None:
        named = cluster.models_path if what == "models" else cluster.data_path
    if named is None and os.environ.get(variable):
        named = Path(os.environ[variable]).absolute()
    if named is None:
        where = f"configs/clusters/{cluster.name}.yaml names no" if cluster else "no cluster is named, so no"
        raise ConfigError(f"{where} `{what}` folder: name it there, or as {variable}=<folder>")
    return named


def _take_all(models: list[Wanted], *, full: bool) -> None:
    missing = [str(one.folder) for one in models if not one.folder.is_dir()]
    if missing:
        raise ConfigError(
            f"MODELS= has no {', '.join(missing)}: one sub-folder per model, with config.json, tokenizer and "
            "weights, is what a run looks for. Without MODELS= they are fetched"
        )
    for one in models:
        check_model(one.folder)
        _say(take(one, read_lock(), full=full))


def _line(one: Download) -> str:
    left = one.size - one.fetched
    pinned = "pinned" if one.locked.revision else "newest, to be pinned"
    return (
        f"{one.wanted.repository}: commit {one.revision[:12]} ({pinned}), {len(one.files)} files, "
        f"{size(one.size)}, {size(max(0, left))} to fetch -> {one.wanted.folder}"
    )


def _needs(downloads: list[Download]) -> dict[Path, int]:
    needs: dict[Path, int] = {}
    for one in downloads:
        parent = one.wanted.folder.parent
        needs[parent] = needs.get(parent, 0) + max(0, one.size - one.fetched)
    return needs


def _closing(options: argparse.Namespace, folders: dict[str, Path]) -> str:
    named = " ".join(f"LADA_{what.upper()}={folder}" for what, folder in folders.items())
    if options.models and options.cluster:
        return f"All is there: make submit … MODELS={folders['models']}, or put it into the cluster's file"
    if options.cluster or "LADA_MODELS" not in os.environ:
        return "All is there; runs find it by name: make submit … TIER=paper, no network and no DATA= needed"
    return f"All is there; runs find it by name where these are set: {named}"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
