"""`make rehearsal-models CLUSTER=…`: random stand-ins of the real models, made in the image."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from jobs.cluster import find_cluster
from jobs.host import ensure_image, run_lada
from lada.errors import ConfigError
from lada.staged import models_of


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Plug in `rehearsal-models`."""
    parser = commands.add_parser("rehearsal-models", help="random stand-ins of a scenario's real models")
    parser.add_argument("--scenario", nargs="+", default=["1"], help="names in configs/scenarios")
    parser.add_argument("--cluster", help="name in configs/clusters; default: the cluster of this host")
    parser.add_argument("--models", help="folder that they are made in; default: the cluster file's `models`")
    parser.set_defaults(command=_make)


def _make(options: argparse.Namespace) -> int:
    """Make them.

    Raises:
        ConfigError: no such scenario; no folder; or the folder holds other models.
    """
    models_of(options.scenario)
    cluster = find_cluster(options.cluster)
    folder = Path(options.models).resolve() if options.models else cluster.models_path
    if folder is None:
        raise ConfigError(f"cluster '{cluster.name}' names no `models` folder: MODELS=<folder>")
    ensure_image(cluster)
    os.environ.pop("LADA_MODELS", None)  # MODELS= of the Makefile would show the folder read-only
    alone = cluster.model_copy(update={"models": None, "data": None})
    command = ["rehearsal-models", "--scenario", *options.scenario, "--models", str(folder)]
    sys.stdout.write(run_lada(alone, command, runs=folder))
    return 0
