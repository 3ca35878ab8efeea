"""Make lab models: ``python -m lada.lab [MODEL ...]``; without names all ten, one after the other."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch

from lada.errors import LadaError
from lada.lab import LAB_MODELS, WEIGHTS, short_name, weights_folder
from lada.lab.building import build, refresh


def main(arguments: list[str] | None = None) -> int:
    """Build the named models and print what happens; 2 when a name is not legal."""
    parser = argparse.ArgumentParser(prog="python -m lada.lab", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="Hugging Face id or short name")
    parser.add_argument(
        "--refresh", action="store_true", help="only the last lesson, from the present weights"
    )
    options = parser.parse_args(arguments)
    names = options.models or list(LAB_MODELS.values())
    make = refresh if options.refresh else build
    try:
        shorts = [short_name(name) for name in names]
    except LadaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    for short in shorts:
        started = time.perf_counter()

        def report(figures: dict[str, Any], short: str = short) -> None:
            print(short, *(f"{name}={value}" for name, value in figures.items()), flush=True)

        make(short, weights_folder(short), report)
        print(f"{short}: {WEIGHTS / short}, {time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
