"""Checks of Slurm: its commands, its controller, and whether it would take the jobs of this cluster file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from jobs.batch import gpu_parameters
from jobs.cluster import Cluster, Resources
from jobs.finding import Finding, fail, ok, warn
from jobs.slurm import command
from jobs.words import duration

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
QUICK = 30.0


def check_slurm(cluster: Cluster) -> Iterator[Finding]:
    """All checks of Slurm; without its commands or its controller only those."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        yield fail(
            "Slurm", f"no {', '.join(missing)} on the PATH", "go to a login node, or load the site's module"
        )
        return
    config = command(["scontrol", "show", "config"], timeout=QUICK)
    if config.returncode:
        said = ((config.stderr or config.stdout).strip().splitlines() or ["it said nothing"])[-1][:200]
        yield fail("Slurm", f"its controller does not answer: {said}", "wait, or tell the site; `sinfo`")
        return
    facts = dict(line.split("=", 1) for line in config.stdout.splitlines() if "=" in line)
    plain = {key.strip(): value.strip() for key, value in facts.items()}
    yield check_name(cluster, plain.get("ClusterName", ""), plain.get("SLURM_VERSION", "?"))
    yield from check_partitions(cluster)
    yield from check_requests(cluster)
    yield check_accounts()


def check_name(cluster: Cluster, found: str, version: str) -> Finding:
    """Whether the cluster file is that of the cluster that answers."""
    text = f"version {version}, ClusterName {found}"
    path = f"configs/clusters/{cluster.name}.yaml"
    if cluster.slurm_cluster is None:
        return warn(
            "Slurm", text, f"slurm_cluster: {found} in {path}, and CLUSTER= need not be given any more"
        )
    if cluster.slurm_cluster != found:
        mend = f"use the file of this cluster (CLUSTER=), or put slurm_cluster: {found} into {path}"
        return fail("Slurm", f"{text}, but '{cluster.name}' is for '{cluster.slurm_cluster}'", mend)
    return ok("Slurm", text)


def check_partitions(cluster: Cluster) -> Iterator[Finding]:
    """Whether the partitions of stages and driver are there and up."""
    for partition in dict.fromkeys((cluster.partition, cluster.driver.partition or cluster.partition)):
        subject = "partition"
        if partition is None:
            yield ok(subject, "none named: the site's default is taken")
            continue
        done = command(["sinfo", "-h", "-p", partition, "-o", "%a|%D|%l"], timeout=QUICK)
        lines = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 2]
        if not lines:
            names = command(["sinfo", "-h", "-o", "%R"], timeout=QUICK).stdout.split()
            listed = ", ".join(sorted(set(names))) or "none"
            mend = f"partition: in configs/clusters/{cluster.name}.yaml; there are: {listed}"
            yield fail(subject, f"there is no '{partition}'", mend)
            continue
        nodes = sum(int(line[1]) for line in lines)
        text = f"{partition}: {nodes} nodes, time limit {lines[0][2]}"
        if any(line[0] != "up" for line in lines):
            yield warn(subject, f"{text}, not up", "wait, or take another one; `sinfo` shows them")
        else:
            yield ok(subject, text)


def check_requests(cluster: Cluster) -> Iterator[Finding]:
    """Whether Slurm would take a job of every line of the cluster file (sbatch --test-only submits none)."""
    driver = [
        f"--time={cluster.driver.minutes}",
        f"--mem={round(1024 * cluster.driver.memory_gb)}M",
        *_where(cluster, cluster.driver.partition or cluster.partition),
    ]
    yield _request("driver job", f"{duration(60 * cluster.driver.minutes)}, one core", driver, cluster)
    if cluster.stages == "inside":
        return
    lines: list[tuple[str, Resources]] = [(f"models to {line.up_to:g}B", line) for line in cluster.resources]
    if cluster.lab is not None:
        lines.append(("the lab tier", cluster.lab))
    for name, line in lines:
        text = (
            f"GPUs {line.gpus}, cores {line.cpus}, {line.memory_gb:g} GB, {duration(60 * line.minutes)}"
            + (f" on each of {line.nodes} nodes" if line.nodes > 1 else "")
        )
        yield _request(name, text, request(cluster, line), cluster)


def request(cluster: Cluster, line: Resources) -> list[str]:
    """What a stage of a line asks for, as sbatch's options."""
    gpus = [f"--{name.replace('_', '-')}={value}" for name, value in gpu_parameters(line, cluster).items()]
    extra = [f"--{name}" if value is True else f"--{name}={value}" for name, value in cluster.sbatch.items()]
    constraint = [] if cluster.constraint is None else [f"--constraint={cluster.constraint}"]
    return [
        f"--nodes={line.nodes}",
        f"--cpus-per-task={line.cpus}",
        f"--mem={round(1024 * line.memory_gb)}M",
        f"--time={line.minutes}",
        *gpus,
        *constraint,
        *extra,
        *_where(cluster, cluster.partition),
    ]


def _where(cluster: Cluster, partition: str | None) -> list[str]:
    named = {"partition": partition, "account": cluster.account, "qos": cluster.qos}
    return [f"--{name}={value}" for name, value in named.items() if value is not None]


def _request(subject: str, text: str, options: list[str], cluster: Cluster) -> Finding:
    done = command(["sbatch", "--test-only", *options, "--wrap=true"], timeout=QUICK)
    if done.returncode == 0:
        return ok(subject, f"Slurm would take it: {text}")
    said = done.stderr.strip().splitlines()
    mend = f"resources, partition, account, qos in configs/clusters/{cluster.name}.yaml"
    return fail(subject, f"{text}: {said[-1] if said else 'refused'}", mend)


def check_accounts() -> Finding:
    """Whether Slurm keeps accounts; runs need none."""
    if shutil.which("sacct") and command(["sacct", "-n", "-X", "-S", "now"], timeout=QUICK).returncode == 0:
        return ok("accounts", "slurmdbd answers: make cost takes its figures from sacct")
    return ok("accounts", "no slurmdbd, and none is needed: make cost takes its figures from the ledger")
