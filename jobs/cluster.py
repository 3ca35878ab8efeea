"""A site: configs/clusters/<name>.yaml, the one file that a researcher edits for a cluster.

Facts of a cluster never enter a run's configuration, and nothing here can change a number.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from jobs.assumptions import Planning
from lada.config import Options, Positive, RunConfig
from lada.errors import ConfigError
from lada.layers import CONFIGS, read_yaml, shipped, validate
from lada.rundir import RunDir, write_atomic

ROOT = Path(__file__).parents[1]
BILLIONS = re.compile(r"(?<![0-9.])([0-9]+(?:\.[0-9]+)?)b(?![a-z0-9])", re.IGNORECASE)


class Resources(Options):
    """What one stage of a party asks for.

    Attributes:
        gpus: per node; 0 asks for none.
        nodes: of one stage.
        ranks: processes per node, one GPU each; torchrun where a stage has more than one in all.
        zero: what DeepSpeed shares among the ranks: 1 optimiser states, 2 gradients too, 3 weights too.
        checkpointing: activations are computed again in the backward pass in place of being kept.
        cpus: per node.
        memory_gb: per node.
        minutes: time limit of one attempt.
        most_memory_gb, most_minutes: what retries may grow to; None: as far as they like.
    """

    gpus: Annotated[int, Field(ge=0)] = 0
    nodes: Positive = 1
    ranks: Positive = 1
    zero: Literal[0, 1, 2, 3] = 0
    checkpointing: bool = True
    cpus: Positive = 8
    memory_gb: Annotated[float, Field(gt=0)] = 32.0
    minutes: Positive = 720
    most_memory_gb: Annotated[float, Field(gt=0)] | None = None
    most_minutes: Positive | None = None

    @property
    def ranks_per_node(self) -> int:
        """Processes on each node."""
        return self.ranks

    def shared(self) -> dict[str, int]:
        """How many ranks compute a stage and what they share, for the record; nothing for one."""
        count = self.nodes * self.ranks
        return {"ranks": count, "zero": self.zero} if count > 1 else {}


class SizedResources(Resources):
    """What a stage of models up to a size asks for.

    Attributes:
        up_to: largest model, in billions of parameters, that this line is for.
    """

    up_to: Annotated[float, Field(gt=0)]


class DriverJob(Options):
    """What the driver's own job asks for: one core and no GPU, for as long as the site allows."""

    partition: str | None = None
    minutes: Positive = 1440
    memory_gb: Annotated[float, Field(gt=0)] = 2.0


class Patience(Options):
    """How long the driver waits before it does something about it, and how often it looks.

    Attributes:
        poll_seconds: between two looks at the queue.
        warning_seconds: before the time limit, a stage is told to save a resume point (USR2).
        hang_minutes: without a new line in a stage's log, its attempt is ended and run again elsewhere.
        pending_minutes: in the queue before the driver says so; the stage stays queued.
        free_gb: with less free space on the shared folder, no stage is started until there is more.
    """

    poll_seconds: Annotated[float, Field(gt=0)] = 15.0
    warning_seconds: Positive = 300
    hang_minutes: Annotated[float, Field(gt=0)] = 60.0
    pending_minutes: Annotated[float, Field(gt=0)] = 120.0
    free_gb: Annotated[float, Field(ge=0)] = 5.0


class Cluster(Options):
    """A site's facts.

    Attributes:
        name: of the file.
        slurm_cluster: Slurm's ClusterName; picks this file where CLUSTER= is not given.
        partition, account, qos, constraint: as sbatch takes them; None leaves them out.
        sbatch: further sbatch options by long name, e.g. ``{reservation: lada}``; true is a bare flag.
        definition: Apptainer definition file that ``make image`` builds.
        image: where the image lies; relative to the checkout. Environment variables are expanded in this and
            all other paths.
        base_image: local base of ``definition``, for definitions that ask for one.
        apptainer: the program, and options that go between it and ``exec``'s own.
        nvidia: ``--nv``: make the host's GPUs and driver visible inside.
        models: folder with one sub-folder per model (paper tier), read-only inside.
        data: folder with one sub-folder per data set (paper tier), for what makes a run's folder: no stage
            sees it.
        binds: further read-only folders, ``source`` or ``source:target``.
        environment: variables to set inside the container.
        setup: shell lines that run on the node before a stage, e.g. ``module load apptainer``.
        gpu_option: how GPUs are asked for: ``gpus-per-node`` or ``gres``.
        gpu_type: e.g. ``a800``: asks for ``a800:4`` instead of ``4``.
        stages: ``sbatch`` submits each stage as a job of its own; ``inside`` runs them in the driver's own
            allocation, where compute nodes may not call sbatch.
        resources: by model size, smallest first; the first line whose ``up_to`` holds a model is taken.
        lab: what a stage of the lab tier asks for, whose models are tiny whatever they are called; None: as
            ``resources`` says.
        planning: what `make plan` reckons with to tell memory and hours (paper tier); None: it does not.
    """

    name: str
    slurm_cluster: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    definition: str = "containers/lada.def"
    image: str = "build/lada.sif"
    base_image: str | None = None
    apptainer: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = ("apptainer",)
    nvidia: bool = True
    models: str | None = None
    data: str | None = None
    binds: Annotated[tuple[str, ...], Field(strict=False)] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    setup: Annotated[tuple[str, ...], Field(strict=False)] = ()
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    gpu_type: str | None = None
    stages: Literal["sbatch", "inside"] = "sbatch"
    driver: DriverJob = DriverJob()
    patience: Patience = Patience()
    resources: Annotated[tuple[SizedResources, ...], Field(min_length=1, strict=False)]
    lab: Resources | None = None
    planning: Planning | None = None

    @field_validator("resources")
    @classmethod
    def _ascending(cls, lines: tuple[SizedResources, ...]) -> tuple[SizedResources, ...]:
        sizes = [line.up_to for line in lines]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"up_to must grow from line to line, found {sizes}")
        return lines

    @property
    def image_path(self) -> Path:
        """The image file, absolute."""
        return ROOT / expand(self.image)

    @property
    def models_path(self) -> Path | None:
        """The folder of models, absolute."""
        return None if self.models is None else ROOT / expand(self.models)

    @property
    def data_path(self) -> Path | None:
        """The folder of data sets, absolute."""
        return None if self.data is None else ROOT / expand(self.data)

    def resources_for(self, model: str, tier: str) -> Resources:
        """What a stage of this model asks for in a tier: ``lab``, or the line of ``resources`` for it.

        Raises:
            ConfigError: when the model's name states no size, or a larger one than any line holds.
        """
        if tier == "lab" and self.lab is not None:
            return self.lab
        size = billions(model)
        for line in self.resources:
            if size <= line.up_to:
                return line
        raise ConfigError(
            f"cluster '{self.name}' has no resources for {model} ({size:g} billion parameters); "
            f"its largest line is up_to: {self.resources[-1].up_to:g}"
        )

    def resources_of(self, config: RunConfig) -> dict[str, Resources]:
        """What a stage of each party of a run asks for; raises as `resources_for`."""
        return {party.name: self.resources_for(party.model, config.tier) for party in config.parties}


def billions(model: str) -> float:
    """Parameters of a model in billions, as its name states them, e.g. 8 for ``Qwen/Qwen3-8B``.

    Raises:
        ConfigError: when the name states none.
    """
    found = BILLIONS.findall(model.rpartition("/")[2])
    if not found:
        raise ConfigError(f"the name '{model}' states no size such as 8B, by which resources are chosen")
    return float(found[-1])


def expand(path: str) -> str:
    """A path of a cluster file with its environment variables and ``~`` filled in.

    Raises:
        ConfigError: naming a variable that is not set.
    """
    filled = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111
    if "$" in filled:
        raise ConfigError(f"'{path}' names an environment variable that is not set")
    return filled


def load_cluster(name: str) -> Cluster:
    """A cluster by the name of its file in configs/clusters, or by the path of a YAML file.

    Raises:
        ConfigError: no such file, or an illegal key or value in it; names the legal ones.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else shipped("clusters", name)
    content = {"name": path.stem, **read_yaml(path)}
    return validate(Cluster, content, {key: str(path) for key in content})


def read_cluster(run: RunDir) -> Cluster:
    """The cluster that a run was submitted to, as ``make submit`` left it in cluster.json.

    Raises:
        ConfigError: when the run has none, or not one that this code understands.
    """
    path = cluster_file(run)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{run.root} was not submitted to a cluster yet: `make submit`") from error
    try:
        return Cluster.model_validate_json(content)
    except ValidationError as error:
        if {one["loc"][:1] for one in error.errors()} == {("planning",)}:
            # An earlier version's assumptions: no stage reads them.
            return Cluster.model_validate_json(json.dumps(json.loads(content) | {"planning": None}))
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        raise ConfigError(
            f"{path} is not what this version of the code understands ({said}); "
            "`make resume RUN=… CLUSTER=<name>` writes it anew"
        ) from error


def write_cluster(run: RunDir, cluster: Cluster) -> None:
    """Leave the cluster's facts with the run: the driver and every stage read them there."""
    write_atomic(cluster_file(run), cluster.model_dump_json(indent=1) + "\n")


def cluster_file(run: RunDir) -> Path:
    """cluster.json of a run."""
    return run.root / "cluster.json"


def find_cluster(name: str | None) -> Cluster:
    """The named cluster, or the one whose ``slurm_cluster`` is the cluster that this host belongs to.

    Raises:
        ConfigError: when none is named and none, or more than one, fits.
    """
    if name:
        return load_cluster(name)
    here = slurm_cluster_name()
    every = [load_cluster(path.stem) for path in sorted((CONFIGS / "clusters").glob("*.yaml"))]
    fitting = [one for one in every if here is not None and one.slurm_cluster == here]
    if len(fitting) == 1:
        return fitting[0]
    legal = ", ".join(one.name for one in every)
    where = "no Slurm answers here" if here is None else f"Slurm's ClusterName here is '{here}'"
    raise ConfigError(
        f"name the cluster with CLUSTER=<name> ({legal}): {where}, "
        f"and {len(fitting)} files in configs/clusters state that as slurm_cluster"
    )


def slurm_cluster_name() -> str | None:
    """ClusterName of the Slurm that answers here, None where none does."""
    inside = os.environ.get("SLURM_CLUSTER_NAME")
    if inside:
        return inside
    try:
        done = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, check=False, timeout=20
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"^ClusterName\s*=\s*(\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else None
