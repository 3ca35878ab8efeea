"""What a real container can read and write: as an ordinary user, in the development cluster's image."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import ROOT, Cluster, load_cluster
from jobs.container import (
    IGNORING_WARNINGS,
    container_argv,
    container_environment,
    host_binds,
    prepare_folders,
    scratch_folder,
    stage_binds,
)
from jobs.image import image_digest, make_image
from lada.exchange import exchange_root, inbox_dirs, outbox_dir
from lada.rundir import RunDir
from tests.fake_runs import make_run

PARTIES = ("server", "client-1", "client-2")
ME = "client-1"
CANARY = "canary-5f1c"


def why_not() -> str:
    """Why these tests cannot run here, or nothing."""
    if shutil.which("apptainer") is None:
        return "no apptainer on the PATH: make cluster-up, then slurm/devcluster/as-user"
    if os.getuid() == 0:
        return "an ordinary user's business: slurm/devcluster/as-user"
    if "DEVCLUSTER" not in os.environ:
        return "DEVCLUSTER is not set: slurm/devcluster/as-user sets it"
    image = load_cluster("devcluster").image_path
    return "" if image.is_file() else f"no image {image}: make image CLUSTER=devcluster"


assert not (why_not() and os.environ.get("LADA_NEED_CLUSTER")), why_not()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")]


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster("devcluster")


@pytest.fixture(params=["checkout", "tmp"])
def run(request: pytest.FixtureRequest) -> Iterator[RunDir]:
    """A run with a file in every folder: beside other runs, and below /tmp, which is another one inside."""
    (ROOT / "runs").mkdir(exist_ok=True)
    parent = ROOT / "runs" if request.param == "checkout" else Path("/tmp")
    with tempfile.TemporaryDirectory(prefix="isolation-", dir=parent) as folder:
        made = make_run(Path(folder))
        made.provenance_json.write_text("{}")
        prepare_folders(made, PARTIES)
        for path in (made.ledger_jsonl, made.metrics_csv, made.root / "logs" / "server" / "x.log"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(CANARY)
        for party in PARTIES:
            (made.party(party) / "file").write_text(party)
            for recipient in (*PARTIES, "all"):
                (outbox_dir(made, party) / recipient / "file").write_text(party)
        yield made


@dataclass
class Inside:
    """Python code that runs in client-1's container of a run."""

    run: RunDir
    cluster: Cluster
    job: Mapping[str, str]

    def command(self, *command: str, scratch: Path | None = None) -> list[str]:
        binds = stage_binds(self.run, ME, PARTIES, self.cluster, scratch=scratch, job=self.job)
        return container_argv(self.cluster, binds, command, pwd=ROOT)

    def environment(self) -> dict[str, str]:
        return container_environment(self.cluster, threads=1, job=self.job)

    def python(self, code: str, *arguments: object, scratch: Path | None = None) -> Any:
        """What ``code`` leaves in ``result``; its arguments are in ``given``."""
        text = f"import json, os, sys\nfrom pathlib import Path\ngiven = json.loads(sys.argv[1])\n{code}"
        text += "\nprint(json.dumps(result))"
        argv = self.command("python", "-c", text, json.dumps(arguments, default=str), scratch=scratch)
        done = subprocess.run(argv, env=self.environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture()
def inside(run: RunDir, cluster: Cluster) -> Inside:
    return Inside(run, cluster, dict(os.environ))


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what is in it."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


TRY_TO_WRITE = """
def attempt(path):
    path = Path(path)
    try:
        with (path if not path.is_dir() else path / "planted").open("a") as file:
            file.write("planted")
    except OSError as error:
        return type(error).__name__ + f" {error.errno}"
    return "written"
result = {path: attempt(path) for path in given[0]}
"""


def test_the_partys_two_folders_can_be_written(inside: Inside) -> None:
    run = inside.run
    mine = [
        run.party(ME) / "new",
        outbox_dir(run, ME) / "server" / "new",
        outbox_dir(run, ME) / "all" / "file",
    ]
    assert set(inside.python(TRY_TO_WRITE, mine).values()) == {"written"}
    assert [path.read_text()[-7:] for path in mine] == ["planted"] * 3


def test_nothing_else_can_be_written(inside: Inside) -> None:
    run = inside.run
    before = files(run.root)
    described = [run.run_yaml, run.plan_json, run.provenance_json, run.public.parent, run.public]
    received = inbox_dirs(run, ME, ["server", "client-2"])
    code = [ROOT / "lada", ROOT / "lada" / "__main__.py", ROOT / "configs"]
    image = ["/opt/lada", "/etc", "/usr/bin", "/root"]
    found = inside.python(TRY_TO_WRITE, [*described, *received, *code, *image])
    assert set(found.values()) <= {"OSError 30", "PermissionError 13"}, found
    hidden = [run.party("server"), run.party("client-2") / "file", run.sealed, run.ledger_jsonl]
    between = [
        run.root / "x",
        run.root / "parties" / "x",
        exchange_root(run) / "x",
        outbox_dir(run, "client-2") / "x",
    ]
    inside.python(TRY_TO_WRITE, [*hidden, *between])  # some are folders of the container's own memory
    assert files(run.root) == before
    assert not [path for path in ROOT.rglob("planted") if "runs" not in path.parts]


def test_what_is_shown_cannot_be_removed_renamed_or_replaced(inside: Inside) -> None:
    run = inside.run
    before = files(run.root)
    found = inside.python(
        """
import shutil
own, shown = Path(given[0]), [Path(path) for path in given[1]]
result = []
for number, path in enumerate(shown):
    for attack in (
        lambda: path.rename(own / str(number)),
        lambda: shutil.rmtree(path) if path.is_dir() else path.unlink(),
        lambda: (own / "link").symlink_to("/etc/hosts") or (own / "link").replace(path),
        lambda: path.chmod(0o777),
        lambda: os.link(path, own / f"hard{number}"),
    ):
        try:
            attack()
            result.append(f"{path} gave way")
        except OSError:
            pass
        (own / "link").unlink(missing_ok=True)
""",
        run.party(ME),
        [run.run_yaml, run.plan_json, run.public.parent, *inbox_dirs(run, ME, ["server"])],
    )
    assert found == []
    assert files(run.root) == before


def test_nothing_else_of_the_run_can_be_seen(inside: Inside) -> None:
    run = inside.run
    allowed = [
        run.run_yaml,
        run.plan_json,
        run.provenance_json,
        run.public.parent,
        run.party(ME),
        outbox_dir(run, ME),
    ]
    allowed += inbox_dirs(run, ME, ["server", "client-2"])
    every = [path for path in run.root.rglob("*") if path.is_file()]
    visible = {str(path) for path in every if any(path.is_relative_to(one) for one in allowed)}
    assert 0 < len(visible) < len(every)
    found = inside.python("result = [path for path in given[0] if os.path.lexists(path)]", every)
    assert set(found) == visible
    walked = inside.python(
        "result = [str(path) for path in Path(given[0]).rglob('*') if path.is_file()]", run.root
    )
    assert set(walked) == visible
    through_links = inside.python(
        """
own = Path(given[0])
(own / "up").symlink_to(own.parent)
(own / "over").symlink_to(given[1])
result = [str(path) for path in (own / "up").rglob("file") if "client-1" not in path.parts]
result += [str(path) for path in (own / "over", own / "over" / "file") if path.exists()]
""",
        run.party(ME),
        run.party("server"),
    )
    assert through_links == []


def test_home_temporary_files_and_other_code_of_the_host_cannot_be_seen(inside: Inside) -> None:
    with (
        tempfile.NamedTemporaryFile(dir="/tmp") as temporary,
        tempfile.NamedTemporaryFile(dir=Path.home()) as own,
    ):
        paths = [
            temporary.name,
            own.name,
            Path.home(),
            ROOT / "Makefile",
            ROOT / "jobs",
            ROOT / ".venv",
            "/work",
        ]
        paths += [os.environ["DEVCLUSTER"] + "/etc", "/var/run/munge", "/dev/shm/x"]
        assert inside.python("result = [path for path in given[0] if os.path.lexists(path)]", paths) == []
    assert inside.python("result = os.path.exists(given[0])", ROOT / "lada" / "__init__.py") is True


def test_no_process_and_no_variable_of_the_host_can_be_seen(inside: Inside) -> None:
    names = ("SECRET", "HF_TOKEN", "APPTAINERENV_SECRET", "SINGULARITYENV_SECRET")
    planted = dict.fromkeys(names, CANARY)
    inside.job = {**os.environ, **planted, "SLURM_JOB_ID": "77"}
    found = inside.python(
        """
processes = [path for path in Path("/proc").iterdir() if path.name.isdecimal()]
environments = []
for path in processes:
    try:
        environments.append((path / "environ").read_text())
    except PermissionError:
        pass
result = {
    "variables": dict(os.environ),
    "environments": environments,
    "commands": [(path / "cmdline").read_text() for path in processes],
    "user": os.getuid(),
}
"""
    )
    assert CANARY not in json.dumps(found["variables"]) + json.dumps(found["environments"])
    assert found["variables"]["SLURM_JOB_ID"] == "77"
    assert found["variables"]["OMP_NUM_THREADS"] == "1"
    assert found["user"] == os.getuid() != 0
    assert len(found["commands"]) <= 3
    assert not any("pytest" in command for command in found["commands"])


def test_temporary_files_lie_in_the_scratch_folder(inside: Inside) -> None:
    with scratch_folder() as scratch:
        inside.python(
            "import tempfile\nPath(tempfile.gettempdir(), 'here').write_text('x')\nresult = 0",
            scratch=scratch,
        )
        assert (scratch / "here").read_text() == "x"
        assert inside.python("result = os.environ['HF_HOME'].startswith('/tmp/')") is True


def test_trusted_commands_may_write_runs_and_no_code(run: RunDir, cluster: Cluster) -> None:
    code = "import pathlib, sys; pathlib.Path(sys.argv[1], 'made').touch(); pathlib.Path('lada/x').touch()"
    binds = host_binds(cluster, run.root)
    argv = container_argv(cluster, binds, ["python", "-c", code, str(run.root)], pwd=ROOT)
    environment = container_environment(cluster, threads=None, job=os.environ)
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert "Read-only file system: 'lada/x'" in done.stderr
    assert (run.root / "made").is_file()


# -- the image


def test_the_image_holds_the_locked_packages_and_not_lada(cluster: Cluster) -> None:
    code = (
        "import json, importlib.util\nfrom importlib.metadata import distributions\n"
        "print(json.dumps([importlib.util.find_spec('lada') is None, "
        "{one.name.lower().replace('_', '-'): one.version for one in distributions()}]))"
    )
    argv = container_argv(cluster, [], ["python", "-c", code], pwd=Path("/"))
    environment = container_environment(cluster, threads=None, job=os.environ)
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    without_lada, versions = json.loads(done.stdout)
    lock = (ROOT / "containers" / "requirements.lock").read_text().split()
    locked = dict(line.split("==") for line in lock)
    assert without_lada
    assert {name: versions[name].partition("+")[0] for name in versions} == locked


def test_the_digest_is_the_files_and_make_image_has_nothing_to_do(cluster: Cluster) -> None:
    with cluster.image_path.open("rb") as file:
        assert image_digest(cluster.image_path) == hashlib.file_digest(file, "sha256").hexdigest()
    said: list[str] = []
    assert make_image(cluster, report=said.append) is False
    assert said[0].startswith(f"{cluster.image_path} is up to date")


# -- ends and signals


def children(pid: int) -> list[int]:
    """A process and all below it, outermost first."""
    below: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            below += [int(child) for child in (thread / "children").read_text().split()]
    return [pid, *(one for child in below for one in children(child))]


@contextlib.contextmanager
def started(
    argv: Sequence[str], environment: Mapping[str, str], word: str
) -> Iterator[subprocess.Popen[str]]:
    """A command that has said ``word``; nothing of it is left at the end."""
    with subprocess.Popen(argv, env=dict(environment), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == word
        every = children(process.pid)
        try:
            yield process
        finally:
            for pid in every:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("run", ["checkout"], indirect=True)
@pytest.mark.parametrize(
    ("ending", "code"), [("sys.exit(85)", 85), ("os.kill(os.getpid(), 9)", 137), ("os.abort()", 134)]
)
def test_the_exit_code_comes_out(inside: Inside, ending: str, code: int) -> None:
    argv = inside.command("python", "-c", f"import os, sys; {ending}")
    assert subprocess.run(argv, env=inside.environment(), capture_output=True, timeout=60).returncode == code


HEEDING = """
import signal, sys, time
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(85))
print("up", flush=True)
while True:  # a signal between a check for one and pause() would be slept over
    time.sleep(0.1)
"""
WITH_CHILDREN = """
import subprocess
sleeps = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
print("up", flush=True)
sleeps[0].wait()
"""
RANK = """
import os, signal, sys, time
def warned(*_):
    assert open("/opt/requirements.lock").read(), "the image is still there"
    os.write(1, f"warned {os.environ['RANK']} of {os.environ['WORLD_SIZE']}\\n".encode())  # in one piece
    os._exit(0)
signal.signal(signal.SIGUSR2, warned)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
os.write(1, b"up\\n")
while True:
    time.sleep(0.1)
"""


@pytest.mark.parametrize("run", ["checkout"], indirect=True)
def test_a_warning_reaches_the_stage(inside: Inside) -> None:
    with started(inside.command("python", "-c", HEEDING), inside.environment(), "up") as process:
        process.send_signal(signal.SIGUSR2)
        assert process.wait(timeout=30) == 85


@pytest.mark.parametrize("run", ["checkout"], indirect=True)
def test_killing_the_container_from_outside_kills_all_in_it(inside: Inside) -> None:
    """All but squashfuse, which serves the image from outside where the kernel may not mount it."""
    with started(inside.command("python", "-c", WITH_CHILDREN), inside.environment(), "up") as process:
        names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in children(process.pid)[1:]}
        ends = {os.pidfd_open(pid): name for pid, name in names.items() if not name.startswith("squashfuse")}
        assert len(ends) == 4, f"the first process inside, python and two sleeps, not {names}"
        process.kill()
        for end, name in ends.items():
            over, _, _ = select.select([end], [], [], 30)
            os.close(end)
            assert over, f"{name} outlived its container"


@pytest.mark.parametrize("run", ["checkout"], indirect=True)
def test_ranks_meet_inside_and_a_warning_ends_none_of_them(inside: Inside) -> None:
    """Neither torchrun nor what serves the image's files: a rank that saves its work needs both."""
    script = inside.run.party(ME) / "rank.py"
    script.write_text(RANK)
    command = [
        *IGNORING_WARNINGS,
        "python",
        "-m",
        "lada.torchrun",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    with started(inside.command(*command), inside.environment(), "up") as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "up"
        for pid in children(process.pid):  # as slurmstepd does it: every process of the step
            os.kill(pid, signal.SIGUSR2)
        assert sorted(process.stdout.read().split("\n")) == ["", "warned 0 of 2", "warned 1 of 2"]
        assert process.wait(timeout=30) == 0
