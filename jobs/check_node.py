"""Checks that need a compute node: one small job writes down what it sees there.

The shared folder, the clock, the host side's Python, sbatch from inside a job, the container, a GPU in it. A
queue that is busy is waited for, but not for ever.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from jobs import slurm
from jobs.check_gpus import SECONDS, gpu_lines, inside, judge_gpus, line_with_gpus, one_gpu
from jobs.cluster import ROOT, Cluster
from jobs.finding import Finding, fail, ok, warn
from jobs.slurm import SlurmError
from jobs.words import reason_words
from lada.errors import ConfigError

MINUTES = 10
MEMORY_MB = 1024
VISIBLE_SECONDS = 60.0
"""How late a file may show up on another host: what NFS keeps of a folder that it once saw."""
SKEW_SECONDS = 5.0
LOOK_SECONDS = 0.5


def check_node(cluster: Cluster, runs: Path, *, wait: float) -> Iterator[Finding]:
    """Submit the job, wait for what it writes, judge it.

    Args:
        runs: folder of all runs; the job works in a folder of its own there.
        wait: seconds that the job may stand in the queue and run; with a GPU to try, `SECONDS` more once it
            runs.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=runs)).resolve()
    except OSError:
        return  # the check of the runs folder has said so
    try:
        (folder / "job.sh").write_text(job_script(cluster, runs, folder), encoding="utf-8")
        begun = time.time()
        job = slurm.submit([*_options(cluster, folder), str(folder / "job.sh")])
        more = 0.0 if line_with_gpus(cluster) is None else SECONDS
        text = _wait(job, folder / "seen", wait, more=more)
        if text is None:
            yield _not_seen(job, folder, wait)
            slurm.cancel([job])
            return
        yield from judge(parse(text), cluster, begun=begun, seen_at=time.time())
    except (SlurmError, ConfigError) as error:
        yield fail("compute node", str(error), f"configs/clusters/{cluster.name}.yaml")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def job_script(cluster: Cluster, runs: Path, folder: Path) -> str:
    """A batch script that writes ``key=value`` lines and then gives the file its name.

    Raises:
        ConfigError: something that the container has to see is not there.
    """
    out = shlex.quote(str(folder / ".seen"))
    return "\n".join(
        [
            "#!/bin/bash",
            f"cd {shlex.quote(str(ROOT))} && echo checkout=yes > {out}",
            f"echo time=$(date +%s.%N) >> {out}",
            f"echo node=${{SLURMD_NODENAME:-$(uname -n)}} >> {out}",
            f"{shlex.quote(sys.executable)} -c 'import jobs.stage_job, submitit' 2>/dev/null"
            f" && echo python=yes >> {out}",
            f"sbatch --test-only --time=1 --mem=1M --wrap=true >/dev/null 2>&1 && echo sbatch=yes >> {out}",
            "said=$( (",
            *inside(cluster, runs, ["python", "-c", "print('inside')"]),
            ") 2>&1 | tail -n 1)",
            f'echo "container=$said" >> {out}',
            f"echo gpus=$(nvidia-smi -L 2>/dev/null | wc -l) >> {out}",
            *gpu_lines(cluster, runs, folder, out),
            f"mv {out} {shlex.quote(str(folder / 'seen'))}",
            "",
        ]
    )


def parse(text: str) -> dict[str, str]:
    """``key=value`` lines."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def judge(seen: Mapping[str, str], cluster: Cluster, *, begun: float, seen_at: float) -> Iterator[Finding]:
    """What the job saw.

    Args:
        begun: time on this host when the job was submitted. seen_at: and when its file was read.
    """
    node, subject = seen.get("node", "?"), "compute node"
    if seen.get("checkout") != "yes":
        yield fail(subject, f"{node} does not see {ROOT}", "put the checkout on the shared file system")
        return
    yield ok(subject, f"{node} sees the runs folder and the checkout")
    yield _clock(float(seen.get("time", begun)), node, begun=begun, seen_at=seen_at)
    if seen.get("python") == "yes":
        yield ok("node's Python", "the host side's environment works there")
    else:
        mend = "put the checkout and its .venv, and the Python that it was made of, where nodes see them"
        yield fail("node's Python", f"{sys.executable} cannot import jobs on {node}", mend)
    if seen.get("sbatch") == "yes":
        yield ok("sbatch there", "jobs can submit jobs: the driver can be a job")
    elif cluster.stages == "inside":
        yield ok("sbatch there", "is not allowed, and not needed (stages: inside)")
    else:
        mend = f"`stages: inside` in configs/clusters/{cluster.name}.yaml, or make drive on the login node"
        yield fail("sbatch there", "is not there, or not allowed, on compute nodes", mend)
    if seen.get("container") == "inside":
        yield ok("container there", f"the image runs on {node}")
    else:
        mend = "setup: in the cluster file loads what is missing there; else ask for user namespaces"
        yield fail("container there", seen.get("container") or "no answer", mend)
    yield from judge_gpus(seen, cluster)


def _clock(there: float, node: str, *, begun: float, seen_at: float) -> Finding:
    """The node's clock can only be bounded: it wrote its time between two moments of this host."""
    ahead, behind = there - seen_at, begun - there
    skew = max(ahead, behind)
    if skew > SKEW_SECONDS:
        text = f"{node} is at least {skew:.0f} s {'ahead' if ahead > behind else 'behind'}"
        return warn("node's clock", text, "runs do not mind; times in logs mislead people. Ask for NTP")
    return ok(
        "node's clock", f"agrees with this host's, as far as can be seen (within {seen_at - begun:.0f} s)"
    )


def _options(cluster: Cluster, folder: Path) -> list[str]:
    asked = {
        "job-name": "lada.doctor",
        "nodes": 1,
        "time": MINUTES,
        "mem": f"{MEMORY_MB}M",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "output": folder / "job.log",
        **one_gpu(cluster),
    }
    return [f"--{name}={value}" for name, value in asked.items() if value is not None]


def _wait(job: str, path: Path, wait: float, *, more: float) -> str | None:
    """What the job wrote; None where it is over without that, or has not come to it in time.

    Args:
        more: seconds beyond ``wait`` that a job may have which runs by then.
    """
    deadline = time.monotonic() + wait
    over_since: float | None = None
    runs = False
    while time.monotonic() < deadline + (more if runs else 0.0):
        # Listing the folder makes a network file system look again.
        if path in path.parent.iterdir():
            return path.read_text(encoding="utf-8", errors="replace")
        verdict = slurm.probe([job])[job]
        runs = verdict.state == "RUNNING"
        if verdict.known in ("over", "gone"):
            over_since = over_since or time.monotonic()
            if time.monotonic() - over_since > min(wait, VISIBLE_SECONDS):
                return None
        time.sleep(LOOK_SECONDS)
    return None


def _not_seen(job: str, folder: Path, wait: float) -> Finding:
    verdict = slurm.probe([job])[job]
    if verdict.known == "live":
        why = reason_words(verdict.reason).text if verdict.state == "PENDING" else verdict.state.lower()
        mend = "make doctor WAIT=600 waits longer; nothing was seen of a compute node"
        return warn("compute node", f"job {job} not done after {wait:.0f} s: {why}", mend)
    log = folder / "job.log"
    said = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
    last = said.splitlines()[-1][:200] if said else "nothing is to be seen of it here"
    text = f"job {job} is over ({verdict.state or 'gone'}): {last}"
    return fail("compute node", text, "runs must lie where login and compute nodes both see them (RUNS=)")
