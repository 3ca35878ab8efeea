"""What a stage sees of the machine: the ``apptainer exec`` command line, its bind mounts, its environment.

A container sees the code and what describes the run read-only, what others addressed to its party read-only,
its party's own exchange folder and private folder, and nothing else of the run or the host. All paths are the
same inside as outside. The environment is a list of names, not what happens to be set.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster import ROOT, Cluster, expand
from lada.errors import ConfigError
from lada.exchange import inbox_dirs, make_exchange_dirs, outbox_dir
from lada.layers import read_run
from lada.provenance import KERNEL_NAMES
from lada.rundir import RunDir, Stage

CODE = ("lada", "configs")
"""Folders of the checkout that are visible inside: not runs/, not .git."""
HOST_NAMES = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "XDG_RUNTIME_DIR")
"""What Apptainer itself gets to see; none of it goes inside."""
STEADY_FUSE = ROOT / "containers" / "fuse"
"""First on Apptainer's PATH: what serves the image's files must outlive a warning to the whole job step."""
USUAL_PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the program in that folder looks for the real one."""
JOB_NAMES = (
    "CUDA_VISIBLE_DEVICES",
    "GLIBC_TUNABLES",
    "LADA_CRASH_AT",
    "LADA_RESUME_MIN_SECONDS",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_RESTART_COUNT",
)
"""Variables of a job that a stage sees, where they are set."""
CACHES = {
    "HF_HOME": "huggingface",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "cache",
}
SCRATCH = Path("/tmp")
"""Where a stage's temporary files and caches lie inside: short, since sockets' paths must be."""
SETTINGS = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "NCCL_DEBUG": "WARN",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
    "PYTHONUNBUFFERED": "1",
    "TMPDIR": str(SCRATCH),
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "TRANSFORMERS_OFFLINE": "1",
    **{name: str(SCRATCH / folder) for name, folder in CACHES.items()},
}
IGNORING_WARNINGS = ("bash", "-c", 'trap "" USR2; exec "$@"', "ranks")
"""What starts ranks must not die of a USR2 that is meant for them, however early it comes."""


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host that is visible inside.

    Raises:
        ConfigError: for a path that cannot be written into Apptainer's ``source:target:option``.
    """

    source: Path
    target: Path
    writable: bool = False

    def __post_init__(self) -> None:
        for path in (self.source, self.target):
            if not path.is_absolute() or set(str(path)) & set(":,\n"):
                raise ConfigError(f"'{path}' cannot be bound: no relative path, no ':' and no ',' in it")

    def __str__(self) -> str:
        return f"{self.source}:{self.target}:{'rw' if self.writable else 'ro'}"


def prepare_folders(run: RunDir, parties: Sequence[str]) -> list[str]:
    """Make every folder that a stage's binds name; to be called on the host before stages start.

    Returns:
        Remarks on what stood in a folder's place and was moved away.
    """
    for party in parties:
        run.party(party).mkdir(parents=True, exist_ok=True)
    return make_exchange_dirs(run, parties)


def stage_binds(
    run: RunDir,
    party: str,
    parties: Sequence[str],
    cluster: Cluster,
    *,
    scratch: Path | None = None,
    job: Mapping[str, str] = os.environ,
) -> list[Bind]:
    """What one stage of a party sees. Missing exchange folders are made.

    Args:
        parties: all of the run.
        scratch: node-local folder for temporary files, see `scratch_folder`; None: a small tmpfs.
        job: the job's environment, for LADA_MODELS and LADA_LAB_WEIGHTS.

    Raises:
        ConfigError: naming what is missing on this node.
    """
    run = RunDir(run.root.absolute())
    prepare_folders(run, parties)
    found = [*_scratch(scratch), *_code()]
    described = (run.run_yaml, run.plan_json, run.provenance_json, run.public.parent)
    received = inbox_dirs(run, party, [one for one in parties if one != party])
    found += [Bind(path, path) for path in (*described, *received)]
    found += [Bind(path, path, writable=True) for path in (outbox_dir(run, party), run.party(party))]
    found += _models(cluster, job, needed=read_run(run.root).tier != "lab")
    return _checked([*found, *_site(cluster)])


def host_binds(
    cluster: Cluster,
    runs: Path,
    *,
    files: Iterable[Path] = (),
    scratch: Path | None = None,
    job: Mapping[str, str] = os.environ,
) -> list[Bind]:
    """What a trusted command of the host side sees, such as ``lada init``: all runs, writable.

    Args:
        runs: folder of all runs.
        files: further files to read, e.g. a dataset or a scenario from outside the checkout.

    Raises:
        ConfigError: naming what is missing.
    """
    paths = [path.absolute() for path in files]
    outside = [path for path in paths if not any(path.is_relative_to(ROOT / folder) for folder in CODE)]
    found = [*_scratch(scratch), *_code(), Bind(runs.absolute(), runs.absolute(), writable=True)]
    data = data_folder(cluster, job)
    outside += [data] if data is not None and data.is_dir() else []
    found += [Bind(path, path) for path in outside]
    return _checked([*found, *_models(cluster, job, needed=False), *_site(cluster)])


def data_folder(cluster: Cluster, job: Mapping[str, str]) -> Path | None:
    """The folder of staged data sets: whole files, with the answers, which no stage may see."""
    if cluster.data_path is not None:
        return cluster.data_path
    return Path(job["LADA_DATA"]).absolute() if job.get("LADA_DATA") else None


def container_argv(
    cluster: Cluster, binds: Sequence[Bind], command: Sequence[str], *, pwd: Path
) -> list[str]:
    """The command line that runs ``command`` in the image, for an ordinary user.

    A process namespace of its own hides the host's processes and ends with the container: whoever kills the
    returned command kills everything inside.

    Args:
        pwd: working folder inside; the checkout, where LaDa's code is to be found.
    """
    isolation = ["--contain", "--no-home", "--cleanenv", "--pid", "--ipc"]
    return [
        *cluster.apptainer,
        "--quiet",
        "exec",
        *isolation,
        *(["--nv"] if cluster.nvidia else []),
        "--pwd",
        str(pwd),
        *(part for bind in binds for part in ("--bind", str(bind))),
        str(cluster.image_path),
        *command,
    ]


def container_environment(
    cluster: Cluster,
    *,
    threads: int | None,
    job: Mapping[str, str],
    checkpointing: bool = False,
    gpus: int = 0,
) -> dict[str, str]:
    """The whole environment of the Apptainer process; what goes inside has its prefix.

    Args:
        threads: OMP_NUM_THREADS, normally ``numerics.threads`` of run.yaml, which decides; None: not set.
        job: the job's environment, of which `JOB_NAMES` go inside.
        checkpointing: see `Resources`.
        gpus: that were asked for on this node: with fewer inside, a stage refuses to begin.
    """
    inside = dict(SETTINGS)
    inside |= {name: job[name] for name in (*JOB_NAMES, *KERNEL_NAMES) if name in job}
    if "LADA_LAB_WEIGHTS" in job:
        inside["LADA_LAB_WEIGHTS"] = str(Path(job["LADA_LAB_WEIGHTS"]).absolute())
    models = _models_folder(cluster, job)
    if models is not None:
        inside["LADA_MODELS"] = str(models)
    if checkpointing:
        inside["LADA_CHECKPOINTING"] = "1"
    if gpus and cluster.nvidia:
        inside["LADA_GPUS"] = str(gpus)
    if threads is not None:
        inside["OMP_NUM_THREADS"] = str(threads)
    inside |= cluster.environment
    outside = {name: job[name] for name in HOST_NAMES if name in job}
    if shutil.which("squashfuse_ll", path=USUAL_PLACES):
        outside["PATH"] = f"{STEADY_FUSE}:{outside.get('PATH', os.defpath)}"
    return outside | {f"APPTAINERENV_{name}": value for name, value in inside.items()}


def stage_command(
    run: RunDir,
    stage: Stage,
    attempt: str,
    *,
    ranks_per_node: int,
    nodes: int,
    zero: int = 0,
    micro_batch_divisor: int = 1,
    job: Mapping[str, str] = os.environ,
) -> list[str]:
    """What runs inside the image for one attempt of a stage, on one node of its job.

    Args:
        zero: what several ranks share, see `Resources`.
        micro_batch_divisor: 1, 2, 4, …: after a want of GPU memory.
        job: the environment of this node's task, read for stages of more than one node.
    """
    module = ["-m", "lada", "step", "--run", str(run.root.absolute())]
    module += ["--party", stage.party, "--stage", stage.name, "--attempt", attempt]
    if micro_batch_divisor > 1:
        module += ["--micro-batch-divisor", str(micro_batch_divisor)]
    if nodes == 1 and ranks_per_node == 1:
        return ["python", *module]
    if zero:
        module += ["--zero", str(zero)]
    start = [*IGNORING_WARNINGS, "python", "-m", "lada.torchrun"]
    ranks = f"--nproc-per-node={ranks_per_node}"
    if nodes == 1:
        return [*start, "--standalone", ranks, *module]
    return [*start, f"--nnodes={nodes}", ranks, *meeting_point(job), *module]


def meeting_point(job: Mapping[str, str]) -> list[str]:
    """Torchrun's options that let the nodes of a job find each other; there is no Slurm inside to ask.

    Raises:
        ConfigError: outside a Slurm job, or where Slurm does not tell the job's nodes.
    """
    missing = [name for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_NODEID") if name not in job]
    if missing:
        raise ConfigError(f"a stage on several nodes needs a Slurm job; {', '.join(missing)} is not set")
    ask = ["scontrol", "show", "hostnames", job["SLURM_JOB_NODELIST"]]
    done = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode or not done.stdout.strip():
        raise ConfigError(f"`{' '.join(ask)}` does not name the nodes: {done.stderr.strip()}")
    number = job["SLURM_JOB_ID"]
    return [
        f"--node-rank={job['SLURM_NODEID']}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={done.stdout.split()[0]}:{29400 + int(number) % 1000}",
        f"--rdzv-id={number}",
    ]


@contextlib.contextmanager
def scratch_folder(job: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """A node-local folder for one attempt's temporary files, removed at the end."""
    with tempfile.TemporaryDirectory(
        prefix="lada-", dir=_folder(job.get("TMPDIR")), ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def _folder(path: str | None) -> str | None:
    """A TMPDIR that a login node named may not be there on a compute node."""
    return path if path and Path(path).is_dir() else None


def _scratch(folder: Path | None) -> list[Bind]:
    return [] if folder is None else [Bind(folder, SCRATCH, writable=True)]


def _code() -> list[Bind]:
    return [Bind(ROOT / folder, ROOT / folder) for folder in CODE]


def _models(cluster: Cluster, job: Mapping[str, str], *, needed: bool) -> list[Bind]:
    folders = [Path(job["LADA_LAB_WEIGHTS"]).absolute()] if "LADA_LAB_WEIGHTS" in job else []
    models = _models_folder(cluster, job)
    if models is None and needed:
        raise ConfigError(f"cluster '{cluster.name}' names no `models` folder, which the real models need")
    if models is not None and (needed or models.is_dir()):
        folders.append(models)
    return [Bind(path, path) for path in folders]


def _models_folder(cluster: Cluster, job: Mapping[str, str]) -> Path | None:
    if cluster.models_path is not None:
        return cluster.models_path
    return Path(job["LADA_MODELS"]).absolute() if "LADA_MODELS" in job else None


def _site(cluster: Cluster) -> list[Bind]:
    pairs = [bind.partition(":") for bind in cluster.binds]
    return [Bind(Path(expand(source)), Path(expand(target or source))) for source, _, target in pairs]


def _checked(binds: list[Bind]) -> list[Bind]:
    for bind in binds:
        if not bind.source.exists():
            raise ConfigError(f"{bind.source} is missing on {os.uname().nodename}; a container has to see it")
    return binds
