"""What a stage's job asks Slurm for, as submitit takes it, and the batch script that comes of it."""

from __future__ import annotations

import math
import shlex
import tempfile
from typing import Any

import submitit

from jobs.cluster import ROOT, Cluster, Resources
from jobs.slurm import comment, job_name
from lada.config import RunConfig
from lada.policy import Change
from lada.rundir import RunDir, Stage


def job_parameters(
    run: RunDir, config: RunConfig, cluster: Cluster, stage: Stage, attempt: str, change: Change
) -> dict[str, Any]:
    """Parameters of submitit's Slurm executor for one attempt of a stage.

    Args:
        change: what this attempt gets that the first did not.

    Raises:
        ConfigError: when the cluster file has no resources for the party's model.
    """
    asked = cluster.resources_of(config)[stage.party]
    found: dict[str, Any] = {
        "job_name": job_name(run, stage),
        "comment": comment(run, attempt),
        "dependency": "singleton",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": ",".join(change.exclude) or None,
        "nodes": asked.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": asked.cpus,
        "mem": f"{math.ceil(1024 * _grown(asked.memory_gb, change.memory, asked.most_memory_gb))}M",
        "time": math.ceil(_grown(asked.minutes, change.minutes, asked.most_minutes)),
        "signal_delay_s": cluster.patience.warning_seconds,
        # What this host side needs is the checkout; the container gets its own environment.
        "setup": [f"cd {shlex.quote(str(ROOT))}", *cluster.setup],
        # Since Slurm 22.05 srun does not take it from sbatch: a task could be bound to one CPU.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={asked.cpus}"],
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **cluster.sbatch},
        **gpu_parameters(asked, cluster),
    }
    # submitit has a wckey of its own, which sites that check theirs refuse.
    return {name: value for name, value in found.items() if value is not None} | {"wckey": None}


def _grown(value: float, factor: float, most: float | None) -> float:
    return value * factor if most is None else max(value, min(value * factor, most))


def gpu_parameters(asked: Resources, cluster: Cluster) -> dict[str, Any]:
    """How a line of the cluster file asks for GPUs, as submitit takes it; empty where it asks for none."""
    if not asked.gpus:
        return {}
    count = f"{cluster.gpu_type}:{asked.gpus}" if cluster.gpu_type else str(asked.gpus)
    if cluster.gpu_option == "gres":
        return {"gres": f"gpu:{count}"}
    return {"gpus_per_node": count}


class _Renderer(submitit.SlurmExecutor):  # type: ignore[misc]
    """Renders a script where there is no Slurm too; submitit itself wants to see srun first."""

    @classmethod
    def affinity(cls) -> int:
        """How well this host suits: well enough to write a text."""
        return 1


def sbatch_text(
    run: RunDir, config: RunConfig, cluster: Cluster, stage: Stage, attempt: str, change: Change
) -> str:
    """The batch script that submitit would submit."""
    with tempfile.TemporaryDirectory() as folder:
        executor = _Renderer(folder=folder)
        executor.update_parameters(**job_parameters(run, config, cluster, stage, attempt, change))
        text: str = executor._make_submission_file_text(executor._submitit_command_str, "uid")
    return text.replace(folder, str(run.root / "logs" / "submitit" / stage.party))
