"""The development cluster's scripts, as far as they can be tried without root or a change of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "slurm" / "devcluster"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), FOLDER / "as-user"])
NOWHERE = {"DEVCLUSTER": "/nonexistent/lada", "DEVUSER": "nobody-yet"}


def bash(*command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the folder, or with ``-c`` a line, with no terminal."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["bash", *command],
        cwd=FOLDER,
        env=inherited | NOWHERE | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(name: str, **settings: str) -> str:
    done = bash("-euc", f". ./settings.sh; render {name}", **settings)
    assert done.returncode == 0, done.stderr
    assert "@" not in done.stdout
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_are_executable(script: Path) -> None:
    assert bash("-n", str(script)).returncode == 0
    assert script.name == "settings.sh" or os.access(script, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", "-x", *SCRIPTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_up_lists_what_it_would_change_and_refuses_without_a_terminal() -> None:
    done = bash("up.sh")
    assert done.returncode == 2
    assert "a user nobody-yet" in done.stdout and "/etc/subuid" in done.stdout
    assert "YES=1" in done.stderr
    assert not Path(NOWHERE["DEVCLUSTER"]).exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"DEVCLUSTER": "relative"},
        {"DEVCLUSTER": "/a b"},
        {"ACCOUNTING": "yes"},
        {"DEVUSER": "root"},
        {"DEVPORT": "x"},
    ],
    ids=str,
)
def test_bad_settings_are_refused_by_name(settings: dict[str, str]) -> None:
    done = bash("up.sh", **settings)
    assert done.returncode == 2 and next(iter(settings)) in done.stderr


def test_as_user_says_that_there_is_no_cluster() -> None:
    done = bash("as-user", "true")
    assert done.returncode == 2 and "make cluster-up" in done.stderr


def test_slurm_conf_has_four_nodes_with_gpus_and_ports_of_its_own() -> None:
    text = rendered("slurm.conf", DEVPORT="30000")
    assert "NodeName=n[1-4] " in text and " Gres=gpu:4" in text and " Port=[30101-30104] " in text
    assert "SlurmctldPort=30017" in text and "StateSaveLocation=/nonexistent/lada/state" in text
    assert "File=/nonexistent/lada/gpu/[0-3]" in rendered("gres.conf")
    assert "DbdPort=30019" in rendered("slurmdbd.conf", DEVPORT="30000")


def test_accounting_is_slurmdbd_or_none() -> None:
    assert "AccountingStorageType=accounting_storage/slurmdbd" in rendered("slurm.conf")
    assert "Accounting" not in rendered("slurm.conf", ACCOUNTING="none")


def test_host_environment_has_the_versions_of_the_image() -> None:
    def pins(name: str) -> set[str]:
        return set((ROOT / "containers" / f"requirements{name}.lock").read_text(encoding="utf-8").split())

    host = pins("-host")
    assert host <= pins("") | pins("-test")
    assert not any(pin.startswith("torch==") for pin in host)
