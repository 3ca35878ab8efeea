"""`python -m lada.lab.selfcheck`: what this environment can do, as one JSON object; `make doctor` asks it so.

Versions, GPUs, and whether a lab model loads and computes while every connection to a network is refused.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from lada.errors import ModelError

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "safetensors",
    "tokenizers",
    "numpy",
    "pydantic",
    "rich",
)
MODEL = "google/gemma-2-2b"
_refusing: list[bool] = []


def report() -> dict[str, Any]:
    """Versions, GPUs and the loaded model.

    Raises:
        ModelError: the model cannot be loaded, or loading it asked for a network.
    """
    import torch

    torch.set_num_threads(1)
    begun = time.monotonic()
    with no_network():
        parameters = _load()
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "model": MODEL,
        "parameters": parameters,
        "seconds": round(time.monotonic() - begun, 2),
    }


def _load() -> int:
    import torch

    from lada.lab import weights_folder
    from lada.loading import load_model

    model = load_model(weights_folder(MODEL))
    with torch.inference_mode():
        hidden = model.hidden(torch.tensor([model.prompt_ids("Question: what is 2 + 2?")]))
    if not bool(torch.isfinite(hidden).all()):
        raise ModelError(f"{MODEL} (lab) computes values that are not finite")
    return sum(value.numel() for value in model.body.parameters())


@contextmanager
def no_network() -> Iterator[None]:
    """Inside, whoever connects to a network gets a ModelError: nothing may need one."""
    if not _refusing:
        sys.addaudithook(_refuse)  # a hook cannot be taken away again, only told to let pass
    _refusing.append(True)
    try:
        yield
    finally:
        _refusing.append(False)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo") and _refusing[-1]:
        raise ModelError(f"something asked for a network ({event} {arguments[-1]!r:.100})")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main() -> int:
    """Print the report; the exit code is that of the error, if there is one."""
    try:
        found = report()
    except ModelError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
