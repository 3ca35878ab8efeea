"""Write the lock files from what is installed: `make lock` after changing containers/*.in and installing.

requirements.lock holds torch and everything that requirements.in needs, with what those need;
requirements-test.lock holds what requirements-test.in needs beside that;
requirements-host.lock holds what requirements-host.in needs, by itself.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent


def closure(names: list[str]) -> dict[str, str]:
    """Installed distributions that the named ones need, themselves included: name -> version."""
    found: dict[str, str] = {}
    waiting = [canonical(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # an optional or other platform's requirement
        found[name] = installed.version.split("+")[0]
        for requirement in installed.requires or []:
            if "extra ==" not in requirement:
                waiting.append(canonical(re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0]))
    return found


def canonical(name: str) -> str:
    """A distribution's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(file: str) -> list[str]:
    """Names in a .in file."""
    lines = (HERE / file).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def write(file: str, versions: dict[str, str]) -> None:
    """Write a lock file."""
    lines = [f"{name}=={version}" for name, version in sorted(versions.items())]
    (HERE / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_time = closure(["torch", *wanted("requirements.in")])
    write("requirements.lock", run_time)
    test = closure(wanted("requirements-test.in"))
    write("requirements-test.lock", {k: v for k, v in test.items() if k not in run_time})
    write("requirements-host.lock", closure(wanted("requirements-host.in")))
