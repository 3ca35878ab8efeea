"""`make doctor`: every check where all is well, and where what it looks for is broken."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from jobs import check_folder, check_node, check_slurm
from jobs.__main__ import main
from jobs.check_folder import check_runs_folder, check_space
from jobs.check_gpus import inside
from jobs.check_image import (
    check_binds,
    check_host,
    check_image_file,
    check_models,
    check_program,
    judge_inside,
)
from jobs.check_node import job_script, judge, parse
from jobs.check_slurm import request
from jobs.cluster import Cluster, SizedResources, load_cluster
from jobs.doctor import line
from jobs.finding import Finding
from jobs.slurm import Verdict
from lada.errors import ModelError
from lada.lab.selfcheck import no_network, report

SEEN = "checkout=yes\ntime=100.5\nnode=n3\npython=yes\nsbatch=yes\ncontainer=inside\ngpus=2\n"
GPU = {
    "torch": "2.13.0",
    "cuda": "13.0",
    "driver": "580.65.06",
    "oldest_driver": 580,
    "gpus": 1,
    "name": "NVIDIA A800-SXM4-80GB",
    "error": 0.0017,
    "deepspeed": "0.19",
}
SEEN += f"device={json.dumps(GPU)}\ndevice_said=\n"


def levels(found: Iterable[Finding]) -> dict[str, str]:
    return {one.subject: one.level for one in found}


def site(**changes: object) -> Cluster:
    return load_cluster("a800").model_copy(update=changes)


# -- the runs folder


def test_a_good_folder(tmp_path: Path) -> None:
    runs = tmp_path / "new" / "runs"
    found = check_runs_folder(runs, free_gb=0.0)
    assert {one.level for one in found} == {"ok"}
    assert [one.subject for one in found[2:]] == list(check_folder.PROPERTIES)
    assert list(runs.iterdir()) == [], "nothing is left behind"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = check_runs_folder(tmp_path / "file" / "runs", free_gb=0.0)
    assert (found.level, found.subject) == ("fail", "runs folder") and "RUNS=" in found.mend


def test_a_folder_that_is_somebody_else_s(tmp_path: Path) -> None:
    if os.geteuid():
        tmp_path.chmod(0o555)
        (found,) = check_runs_folder(tmp_path / "runs", free_gb=0.0)
    else:
        tmp_path.chmod(0o755)
        os.seteuid(65534)
        try:
            (found,) = check_runs_folder(tmp_path / "runs", free_gb=0.0)
        finally:
            os.seteuid(0)
    assert found.level == "fail" and "Permission denied" in found.text


def test_space(tmp_path: Path) -> None:
    assert check_space(tmp_path, free_gb=1e9).level == "fail"
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize / 1e9
    assert check_space(tmp_path, free_gb=free / 2).level == "warn"
    assert check_space(tmp_path, free_gb=0.0).level == "ok"


def refuse(code: int) -> Callable[..., None]:
    def function(*arguments: object, **named: object) -> None:
        raise OSError(code, os.strerror(code))

    return function


def replace_all(source: Path, target: Path) -> None:
    """A rename that replaces whatever is there."""
    subprocess.run(["rm", "-rf", str(target)], check=True)
    os.rename(source, target)  # noqa: PTH104


@pytest.mark.parametrize(
    ("what", "patch", "level", "said"),
    [
        ("rename", ("pathlib.Path.rename", replace_all), "fail", "second commit"),
        ("rename", ("pathlib.Path.rename", lambda *_: None), "fail", "does not replace a file"),
        ("rename", ("pathlib.Path.rename", refuse(errno.EIO)), "fail", "Input/output error"),
        ("hard links", ("jobs.check_folder.os.link", refuse(errno.EPERM)), "fail", "cannot be made"),
        ("hard links", ("jobs.check_folder.os.link", lambda a, b: b.write_text("")), "fail", "not refused"),
        ("flock", ("jobs.check_folder.fcntl.flock", refuse(errno.ENOTSUP)), "warn", "mount option"),
        ("flock", ("jobs.check_folder.fcntl.flock", lambda *_: None), "warn", "two in at once"),
        ("clock", ("jobs.check_folder.time.time", lambda: time.monotonic()), "warn", "s off this host"),
        ("fsync", ("jobs.check_folder.os.open", refuse(errno.EINVAL)), "warn", "not for folders"),
    ],
)
def test_a_file_system_that_lacks_something(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    patch: tuple[str, Callable[..., object]],
    level: str,
    said: str,
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(*patch)
        found = check_folder._careful(what, check_folder.PROPERTIES[what], tmp_path)
    assert found.level == level
    assert said in found.text + found.mend and found.mend


def test_links_that_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(source: Path, target: Path) -> None:
        if target.exists():
            raise FileExistsError
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr("jobs.check_folder.os.link", copy)
    found = check_folder.check_links(tmp_path)
    assert found.level == "fail" and "[1, 1]" in found.text


def test_a_real_lock_is_noticed(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert check_folder.check_lock(tmp_path).level == "warn"
    assert check_folder.check_lock(tmp_path).level == "ok"


# -- Slurm: its answers as they were seen on a real one (22.05)

CONFIG = "Configuration data as of 2026-11-21T00:32:40\nClusterName = devcluster\nSLURM_VERSION = 22.05.8\n"
REFUSED = "sbatch: error: Batch job submission failed: Requested node configuration is not available"
SILENT = "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)"


class FakeSlurm:
    """Answers of Slurm's commands, by the command's name; what is not named succeeds and says nothing."""

    def __init__(self, patch: pytest.MonkeyPatch, **answers: tuple[int, str, str]) -> None:
        self.answers, self.asked = answers, list[list[str]]()
        patch.setattr(check_slurm, "command", self.command)
        patch.setattr(check_slurm.shutil, "which", lambda name: f"/usr/bin/{name}")

    def command(self, arguments: list[str], **named: float) -> subprocess.CompletedProcess[str]:
        self.asked.append(arguments)
        code, out, err = self.answers.get(arguments[0], (0, "", ""))
        return subprocess.CompletedProcess(arguments, code, out, err)


def examine(cluster: Cluster) -> list[Finding]:
    return list(check_slurm.check_slurm(cluster))


def test_no_slurm_on_this_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = examine(site())
    assert found.level == "fail" and "no sbatch, srun" in found.text


def test_a_controller_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSlurm(monkeypatch, scontrol=(1, "", SILENT))
    (found,) = examine(site())
    assert found.level == "fail" and "Unable to contact" in found.text


def test_a_cluster_where_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = FakeSlurm(monkeypatch, scontrol=(0, CONFIG, ""), sinfo=(0, "up|4|infinite\n", ""))
    found = examine(load_cluster("devcluster"))
    assert {one.level for one in found} == {"ok"}
    submitted = [call for call in slurm.asked if call[0] == "sbatch"]
    assert len(submitted) == 3 and all("--test-only" in call for call in submitted), "nothing is submitted"
    assert "--gpus-per-node=2" in submitted[2] and "--partition=main" in submitted[0]


@pytest.mark.parametrize(("name", "level"), [("devcluster", "ok"), ("other", "fail"), (None, "warn")])
def test_the_file_of_another_cluster(monkeypatch: pytest.MonkeyPatch, name: str | None, level: str) -> None:
    FakeSlurm(monkeypatch, scontrol=(0, CONFIG, ""), sinfo=(0, "up|4|infinite\n", ""))
    found = examine(site(slurm_cluster=name))[0]
    assert found.level == level
    assert level == "ok" or "slurm_cluster: devcluster" in found.mend


def test_a_partition_that_is_not_there_or_not_up(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSlurm(monkeypatch, scontrol=(0, CONFIG, ""))
    assert levels(examine(site()))["partition"] == "fail"
    FakeSlurm(monkeypatch, scontrol=(0, CONFIG, ""), sinfo=(0, "down|4|1-00:00:00\n", ""))
    assert levels(examine(site()))["partition"] == "warn"
    FakeSlurm(monkeypatch, scontrol=(0, CONFIG, ""))
    assert levels(examine(site(partition=None)))["partition"] == "ok"


def test_resources_that_slurm_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSlurm(monkeypatch, scontrol=(0, CONFIG, ""), sbatch=(1, "", f"{REFUSED}\n"))
    found = {one.subject: one for one in examine(site())}
    assert found["models to 80B"].level == found["driver job"].level == "fail"
    assert "not available" in found["models to 80B"].text
    assert "models to 80B" not in levels(examine(site(stages="inside")))


def test_no_accounts_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSlurm(monkeypatch, scontrol=(0, CONFIG, ""), sacct=(1, "", "Slurm accounting storage is disabled"))
    (found,) = [one for one in examine(site()) if one.subject == "accounts"]
    assert found.level == "ok" and "none is needed" in found.text


def test_a_request_names_all_that_a_stage_asks_for() -> None:
    cluster = site(
        account="a", qos="q", constraint="c", gpu_type="a800", sbatch={"exclusive": True, "reservation": "r"}
    )
    found = request(cluster, cluster.resources[0])
    wanted = {"--account=a", "--qos=q", "--constraint=c", "--gpus-per-node=a800:1", "--exclusive"}
    assert wanted | {"--reservation=r", "--partition=gpu", "--time=720"} <= set(found)


# -- host, Apptainer, image


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_host_side(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_host().level == "ok"
    monkeypatch.setattr("jobs.check_image.HOST_PACKAGES", ("submitit", "no-such-package"))
    assert check_host().level == "fail" and "no-such-package missing" in check_host().text


def test_apptainer(tmp_path: Path) -> None:
    good = program(tmp_path / "good", "echo apptainer version 1.4.5")
    bad = program(tmp_path / "bad", "echo wrong glibc >&2; exit 1")
    assert check_program(site(apptainer=(str(good),))).text == "apptainer version 1.4.5"
    found = check_program(site(apptainer=(str(bad),)))
    assert found.level == "fail" and "wrong glibc" in found.text
    missing = site(apptainer=(str(tmp_path / "none"),))
    assert check_program(missing).level == "fail"
    assert check_program(missing.model_copy(update={"setup": ("module load apptainer",)})).level == "warn"


def test_the_image(tmp_path: Path) -> None:
    cluster = site(image=str(tmp_path / "x.sif"))
    assert "make image CLUSTER=a800" in check_image_file(cluster).mend
    (tmp_path / "x.sif").write_bytes(b"image")
    assert check_image_file(cluster).level == "ok"


def test_binds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LADA_NOWHERE", raising=False)
    assert check_binds(site()).level == "ok"
    assert check_binds(site(binds=(f"{tmp_path}:/data",))).level == "ok"
    assert f"no {tmp_path}/none" in check_binds(site(binds=(f"{tmp_path}/none:/data",))).text
    assert check_binds(site(binds=("$LADA_NOWHERE/x",))).level == "fail"


def test_models(tmp_path: Path) -> None:
    assert check_models(site(models=None)).level == "ok"
    cluster = site(models=str(tmp_path))
    found = check_models(cluster)
    assert found.level == "warn" and "10 of 10" in found.text and "make stage" in found.mend
    for name in ("Qwen3-32B", "gemma-2-2b", "gemma-2-27b", "Meta-Llama-3-8B"):
        (tmp_path / name).mkdir()
    found = check_models(cluster)
    assert "6 of 10" in found.text and "scenarios 2, 3, 4" in found.mend, "scenario 1 is complete"


PACKAGES = ["torch", "transformers", "peft", "deepspeed", "safetensors", "tokenizers", "numpy", "pydantic"]
INSIDE = {
    "python": "3.11.2",
    "packages": dict.fromkeys(PACKAGES, "1.0"),
    "gpus": 0,
    "cuda": "13.0",
    "model": "google/gemma-2-2b",
}


def test_what_the_image_says_of_itself() -> None:
    found = levels(judge_inside(INSIDE, site()))
    assert found == {"packages": "ok", "offline": "ok", "GPUs": "warn"}
    assert "GPUs" not in levels(judge_inside(INSIDE, site(nvidia=False)))
    assert levels(judge_inside({**INSIDE, "gpus": 8}, site()))["GPUs"] == "ok"
    without = {**INSIDE, "packages": {**dict.fromkeys(PACKAGES, "1.0"), "deepspeed": None}}
    ranks = site(resources=(SizedResources(up_to=80, gpus=2, ranks=2),))
    assert levels(judge_inside(without, ranks))["packages"] == "fail"
    one_rank = load_cluster("devcluster")
    assert levels(judge_inside(without, one_rank))["packages"] == "ok"
    without = {**INSIDE, "packages": {**dict.fromkeys(PACKAGES, "1.0"), "torch": None}}
    assert levels(judge_inside(without, one_rank))["packages"] == "fail"


def test_the_image_s_own_check_needs_no_network() -> None:
    found = report()
    assert found["parameters"] > 0 and found["packages"]["torch"]
    assert json.loads(json.dumps(found)) == found


def test_who_asks_for_a_network_is_found_out() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with no_network(), pytest.raises(ModelError, match="asked for a network"):
            socket.create_connection(server.getsockname())
        socket.create_connection(server.getsockname()).close()


# -- a compute node


def test_what_a_node_saw() -> None:
    found = list(judge(parse(SEEN), site(), begun=100.0, seen_at=103.0))
    assert {one.level for one in found} == {"ok"} and len(found) == 8
    (cuda,) = [one for one in found if one.subject == "CUDA inside"]
    for part in ("A800", "CUDA 13.0", "driver 580.65.06"):
        assert part in cuda.text


@pytest.mark.parametrize(
    ("gone", "subject", "level", "mend"),
    [
        ("checkout=yes\n", "compute node", "fail", "shared file system"),
        ("python=yes\n", "node's Python", "fail", ".venv"),
        ("sbatch=yes\n", "sbatch there", "fail", "stages: inside"),
        ("container=inside\n", "container there", "fail", "user namespaces"),
        ("gpus=2\n", "GPUs there", "fail", "gpu_option"),
    ],
)
def test_what_a_node_did_not_see(gone: str, subject: str, level: str, mend: str) -> None:
    found = {
        one.subject: one for one in judge(parse(SEEN.replace(gone, "")), site(), begun=100.0, seen_at=103.0)
    }
    assert found[subject].level == level and mend in found[subject].mend


@pytest.mark.parametrize(
    ("known", "said", "subject", "mend"),
    [
        ({"driver": "535.129.03"}, "too old", "CUDA inside", "a driver of 580 or newer"),
        ({"driver": None}, "no NVIDIA driver", "CUDA inside", "--nv"),
        ({"driver": "580.65.06"}, "no CUDA-capable device", "CUDA inside", "gpu_option"),
        ({"cuda": None}, "a CPU build", "CUDA inside", "lada.def"),
        ({"name": "A800", "gpus": 1}, "no kernel image", "CUDA inside", "another node"),
        ({"name": "A800", "gpus": 1, "error": 0.5}, "", "CUDA inside", "admins"),
        ({"name": "A800", "gpus": 1, "error": float("nan")}, "", "CUDA inside", "admins"),
        ({"name": "A800", "gpus": 1, "error": 0.001}, "no nvcc", "DeepSpeed there", "nvcc"),
    ],
)
def test_a_gpu_that_the_image_cannot_use(
    known: dict[str, object], said: str, subject: str, mend: str
) -> None:
    """What `lada.gpus` said before it broke, and how it broke."""
    first = {key: GPU[key] for key in ("torch", "cuda", "driver", "oldest_driver")}
    seen = {**parse(SEEN), "device": json.dumps({**first, **known}), "device_said": said}
    found = {one.subject: one for one in judge(seen, site(), begun=100.0, seen_at=103.0)}
    assert found[subject].level == "fail" and mend in found[subject].mend
    assert said in found[subject].text
    assert found["GPUs there"].level == "ok", "the host's nvidia-smi is no witness"


def test_an_image_that_did_not_even_answer_about_gpus() -> None:
    seen = {**parse(SEEN), "device": "", "device_said": "FATAL: no such file"}
    found = {one.subject: one for one in judge(seen, site(), begun=100.0, seen_at=103.0)}
    assert found["CUDA inside"].level == "fail" and "FATAL" in found["CUDA inside"].text
    assert "DeepSpeed there" not in found


def test_deepspeed_is_needed_where_there_are_ranks() -> None:
    broken = {key: value for key, value in GPU.items() if key != "deepspeed"}
    seen = {**parse(SEEN), "device": json.dumps(broken), "device_said": "no nvcc"}
    alone = site(resources=(SizedResources(up_to=80, gpus=1),))
    assert levels(judge(seen, alone, begun=100.0, seen_at=103.0))["DeepSpeed there"] == "warn"


@pytest.mark.parametrize("changes", [{"nvidia": False}, {"resources": (SizedResources(up_to=80),)}])
def test_no_gpu_is_tried_where_no_stage_gets_one(changes: dict[str, object], tmp_path: Path) -> None:
    cluster = site(models=None, **changes)
    assert "lada.gpus" not in job_script(cluster, tmp_path, tmp_path)
    assert not any("--g" in option for option in check_node._options(cluster, tmp_path))
    seen = parse("".join(line for line in SEEN.splitlines(True) if not line.startswith("device")))
    assert "CUDA inside" not in levels(judge(seen, cluster, begun=100.0, seen_at=103.0))


def test_the_gpu_that_is_tried_is_the_job_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    monkeypatch.setattr("jobs.check_gpus.container_argv", lambda *arguments, **options: ["env"])
    _, *_, line = inside(site(models=None, setup=("true",)), tmp_path, ["python"], gpus=1)
    shown = {
        granted: subprocess.run(
            ["bash", "-c", f"{granted}\n{line}"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for granted in ("export CUDA_VISIBLE_DEVICES=2,3", "unset CUDA_VISIBLE_DEVICES")
    }
    for granted, expected in zip(shown, (["APPTAINERENV_CUDA_VISIBLE_DEVICES=2,3"], []), strict=True):
        said = [one for one in shown[granted] if one.startswith("APPTAINERENV_CUDA_VISIBLE_DEVICES")]
        assert said == expected, "not what the login node says"
        assert not any("SLURM" in one for one in shown[granted] if one.startswith("APPTAINERENV_"))


def test_the_job_asks_for_a_gpu_where_only_larger_models_get_one(tmp_path: Path) -> None:
    cluster = site(
        resources=(SizedResources(up_to=9), SizedResources(up_to=80, gpus=4, ranks=4)), gpu_type="a800"
    )
    found = check_node._options(cluster, tmp_path)
    assert "--gpus-per-node=a800:1" in found and "--mem=8192M" in found


def test_a_job_that_tries_a_gpu_gets_the_time_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def probe(ids: list[str]) -> dict[str, Verdict]:
        looks.append(ids[0])
        if len(looks) == 3:
            (tmp_path / "seen").write_text("checkout=yes")
        return {ids[0]: Verdict("live", "RUNNING")}

    monkeypatch.setattr(check_node.slurm, "probe", probe)
    monkeypatch.setattr(check_node, "LOOK_SECONDS", 0.02)
    assert check_node._wait("7", tmp_path / "seen", 0.01, more=0.0) is None
    assert check_node._wait("7", tmp_path / "seen", 0.01, more=9.0) == "checkout=yes"


def test_a_site_where_jobs_may_not_submit_jobs() -> None:
    seen = parse(SEEN.replace("sbatch=yes\n", ""))
    assert levels(judge(seen, site(stages="inside"), begun=100.0, seen_at=103.0))["sbatch there"] == "ok"


@pytest.mark.parametrize(("there", "said"), [("200.0", "97 s ahead"), ("50.0", "50 s behind")])
def test_a_node_s_clock(there: str, said: str) -> None:
    seen = parse(SEEN.replace("100.5", there))
    found = {one.subject: one for one in judge(seen, site(), begun=100.0, seen_at=103.0)}["node's clock"]
    assert found.level == "warn" and said in found.text


@pytest.fixture()
def _programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    program(tmp_path / "bin" / "sbatch", "exit 0")
    program(tmp_path / "bin" / "nvidia-smi", "echo GPU 0; echo GPU 1")
    inside = f"""test "$APPTAINERENV_HF_HUB_OFFLINE" = 1 || exit 1
case "$*" in
*lada.gpus) test "$APPTAINERENV_LADA_GPUS" = 1 && echo '{json.dumps(GPU)}' && echo "a warning" >&2 ;;
*) test -z "$APPTAINERENV_LADA_GPUS" && echo inside ;;
esac"""
    program(tmp_path / "bin" / "apptainer", inside)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    yield


@pytest.mark.usefixtures("_programs")
def test_the_job_s_script_writes_what_is_judged(tmp_path: Path) -> None:
    """The very script, run here: what a shell makes of it is what a node would."""
    folder = tmp_path / "with space"
    folder.mkdir()
    cluster = site(setup=("true # module load",), models=None)
    (folder / "job.sh").write_text(job_script(cluster, tmp_path, folder))
    begun = time.time()
    subprocess.run(["bash", str(folder / "job.sh")], check=True)
    seen = parse((folder / "seen").read_text())
    found = list(judge(seen, cluster, begun=begun, seen_at=time.time()))
    assert {one.level for one in found} == {"ok"}, found
    assert seen["gpus"] == "2" and json.loads(seen["device"]) == GPU and seen["device_said"] == "a warning"


# -- the command


def test_without_a_cluster_it_says_so_and_looks_at_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_CLUSTER_NAME", raising=False)
    assert main(["doctor", "--runs", str(tmp_path / "runs")]) == 14
    shown = capsys.readouterr().out
    assert "fail cluster file" in shown and "ok   runs folder" in shown and "1 failed" in shown


def test_json_and_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = ["doctor", "--cluster", "a800", "--runs", str(tmp_path / "runs"), "--json"]
    assert main(asked) == 14
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert printed.count("\n") == 1 and found["ok"] is False
    assert {"level", "subject", "text", "mend"} == set(found["checks"][0])
    ok = Finding("ok", "all", "is well")
    monkeypatch.setattr("jobs.doctor.findings", lambda *_, **__: iter([ok, Finding("warn", "a", "b", "c")]))
    assert main(asked) == 0, "warnings alone are no failure"


def test_a_line_says_its_level_in_words() -> None:
    assert line(Finding("warn", "GPUs", "none", "get some")).plain.splitlines() == [
        "warn GPUs             none",
        "      -> get some",
    ]
