"""Commands of lada in the image, where torch is, on the host's behalf; what the host knows of a run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.cluster import ROOT, Cluster
from jobs.container import container_argv, container_environment, data_folder, host_binds
from jobs.image import image_digest, make_image
from lada.errors import ConfigError, LadaError
from lada.provenance import check_host, host_facts
from lada.rundir import RunDir


class CommandError(LadaError):
    """A command in the image failed; it has said why itself."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the command ended with exit code {exit_code}")
        self.exit_code = exit_code


def lada_command(
    cluster: Cluster, arguments: Sequence[str], *, runs: Path, files: Sequence[Path] = ()
) -> tuple[list[str], dict[str, str]]:
    """A trusted ``python -m lada`` command in the image, and its whole environment.

    Args:
        runs: folder that it may write.
        files: further files that it reads.

    Raises:
        ConfigError: when there is no image.
    """
    need_image(cluster)
    runs.mkdir(parents=True, exist_ok=True)
    binds = host_binds(cluster, runs.resolve(), files=files)
    argv = container_argv(cluster, binds, ["python", "-m", "lada", *arguments], pwd=ROOT)
    environment = container_environment(cluster, threads=None, job=os.environ)
    data = data_folder(cluster, os.environ)
    if data is not None:
        environment["APPTAINERENV_LADA_DATA"] = str(data)
    return argv, environment


def run_lada(cluster: Cluster, arguments: Sequence[str], *, runs: Path, files: Sequence[Path] = ()) -> str:
    """Run such a command; returns what it printed. Its remarks go to stderr.

    Raises:
        CommandError: when it failed, with its exit code.
    """
    argv, environment = lada_command(cluster, arguments, runs=runs, files=files)
    done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise CommandError(done.returncode)
    return done.stdout


def ask_lada(
    cluster: Cluster, arguments: Sequence[str], files: Sequence[Path], *, runs: Path | None = None
) -> str:
    """What a command that writes nothing prints: in the image or, before that is built, here where torch is.

    Args:
        runs: that it looks at; None, or not there yet: none.

    Raises:
        ConfigError: there is neither. CommandError: it failed.
    """
    if cluster.image_path.is_file():
        with tempfile.TemporaryDirectory() as nowhere:
            seen = runs if runs is not None and runs.is_dir() else Path(nowhere)
            return run_lada(cluster, arguments, runs=seen, files=files)
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"neither an image ({cluster.image_path}) nor torch is here, and methods need one of them: "
            f"`make image CLUSTER={cluster.name}` or `make setup`"
        )
    command = [sys.executable, "-m", "lada", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise CommandError(done.returncode)
    return done.stdout


def need_image(cluster: Cluster) -> None:
    """Refuse where the image is not there.

    Raises:
        ConfigError: with what to do.
    """
    if not cluster.image_path.is_file():
        raise ConfigError(f"no image {cluster.image_path}; `make image CLUSTER={cluster.name}` builds it")


def ensure_image(cluster: Cluster) -> None:
    """Build the image where it is absent and its base lies on this host; else say how to build it.

    Raises:
        ConfigError: with what to do.
    """
    if not cluster.image_path.is_file() and cluster.base_image is not None:
        make_image(cluster, report=lambda line: print(line, flush=True))
    need_image(cluster)


def facts(cluster: Cluster) -> str:
    """What the host knows of a run's making, as JSON: the image has no git, and not its own digest.

    Lines of the cluster that give a stage several ranks are among it, since those change last bits.
    """
    several = [line for line in cluster.resources if line.nodes * line.ranks_per_node > 1]
    names = ("up_to", "nodes", "ranks", "zero")
    ranks = {"ranks": [line.model_dump(include=set(names)) for line in several]} if several else {}
    return json.dumps({**host_facts(), "image": image_digest(cluster.image_path), **ranks})


def check_unchanged(run: RunDir, cluster: Cluster) -> None:
    """Refuse to go on with code, an image or a run.yaml that the run did not begin with.

    Raises:
        ChangedError: naming what changed.
    """
    need_image(cluster)
    check_host(run, image_digest(cluster.image_path))
