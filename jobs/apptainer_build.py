"""`apptainer build` by an ordinary user: what has to be there, the build itself, a look at the result."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from jobs import wheels
from jobs.cluster import ROOT, Cluster
from jobs.wheels import Report
from lada.errors import ConfigError

COMPRESSION = "-comp zstd -Xcompression-level 3"
"""Measured against gzip at level 1: 62 s instead of 74 s to build, 616 MB instead of 677 MB, and packages are
imported in 5.3 s instead of 8 s (4.9 s from a folder of the host)."""
UNPACKED = 6
"""Bytes of installed packages per byte of wheel, generously."""
DOCKER_BASE = 15 * 10**9
"""Bytes that a CUDA base takes unpacked, with what is fetched of it."""
DROPPED = re.compile(r"^(APPTAINER|SINGULARITY)(ENV_|_BIND)")
"""Variables that would add mounts or settings to the build."""


@dataclass(frozen=True)
class Build:
    """One build of a definition file.

    Attributes:
        definition: path of the definition file, inside the checkout.
        base: local image that it builds on; None where it fetches one.
        report: takes lines for a person.
    """

    cluster: Cluster
    definition: Path
    base: Path | None
    report: Report

    def check_program(self) -> None:
        """Raises ConfigError when there is no Apptainer."""
        program = self.cluster.apptainer[0]
        if shutil.which(program) is None:
            raise ConfigError(
                f"there is no `{program}` on the PATH: load its module, or install Apptainer (an ordinary "
                "user needs uidmap, squashfs-tools and a range in /etc/subuid and /etc/subgid beside it)"
            )

    def check_folder(self, folder: Path) -> None:
        """Raises ConfigError when the image's folder cannot be made or written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the folder of `image`: {error}") from error
        if not os.access(folder, os.W_OK):
            raise ConfigError(
                f"this user may not write in {folder}, where the cluster's file puts the image: "
                "`image` may name another place"
            )

    def check_space(self, wheelhouse: Path, folder: Path) -> None:
        """Raises ConfigError when the temporary folder or the image's has too little space for the build."""
        packages = wheels.size(wheelhouse)
        base = DOCKER_BASE if self.base is None else 4 * self.base.stat().st_size
        temporary = Path(os.environ.get("APPTAINER_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
        for place, needed, mend in (
            (temporary, UNPACKED * packages + base, "name another folder with APPTAINER_TMPDIR"),
            (folder, 2 * packages + base // 2, "free some, or let `image` name another folder"),
        ):
            free = shutil.disk_usage(place).free
            if free < needed:
                short = f"has {free / 1e9:.1f} GB free, the build needs about {needed / 1e9:.1f} GB"
                raise ConfigError(f"{place} {short}: {mend}")

    def run(self, wheelhouse: Path, image: Path, *, log: Path) -> None:
        """Build ``image`` and enter it once.

        Args:
            wheelhouse: folder with every wheel that %post installs.
            log: takes all that Apptainer says.

        Raises:
            ConfigError: with Apptainer's reason.
        """
        arguments = ["--force", "--bind", f"{wheelhouse}:/mnt:ro", "--mksquashfs-args", COMPRESSION]
        if self.base is not None:
            arguments += ["--build-arg", f"BASE={self.base}"]
        command = [*self.cluster.apptainer, "build", *arguments, str(image), str(self.definition)]
        self.report(f"building from {self.definition.name}, some minutes; all output in {log}")
        code, lines = self._watch(command, log)
        if code:
            reasons = [line for line in lines if re.search(r"^(FATAL|ERROR)|[Nn]o space left", line)]
            reason = (reasons or lines or ["no output"])[-1]
            raise ConfigError(f"`apptainer build` failed: {reason}\nAll that it said: {log}")
        self._enter(image, log)

    def version(self) -> str:
        """Apptainer's name and version."""
        command = [*self.cluster.apptainer, "--version"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    def _watch(self, command: list[str], log: Path) -> tuple[int, list[str]]:
        environment = {name: value for name, value in os.environ.items() if not DROPPED.match(name)}
        lines = []
        with (
            log.open("w", encoding="utf-8") as file,
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                lines.append(line.strip())
                if line.strip() and not line.startswith(("WARNING", "+")):
                    self.report("  " + line.strip().removeprefix("INFO:").strip())
        return process.returncode, lines

    def _enter(self, image: Path, log: Path) -> None:
        enter = ["--quiet", "exec", "--contain", "--no-home", "--pwd", "/", str(image), "python", "-c", ""]
        done = subprocess.run([*self.cluster.apptainer, *enter], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"the image is built but cannot be entered: {done.stderr.strip()}\nSee {log}")
