"""Ranks that fail: torchrun --nproc-per-node=2 -m tests.rank_faults FAULT."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass

import torch

from lada.errors import ConfigError, Paused, end, exit_code
from lada.ranks import Ranks, joined
from lada.stage import resource_errors


@dataclass
class Model:
    """What commands are about."""

    ranks: Ranks
    network: None = None


def memory(model: Model) -> None:
    """Rank 1 alone runs out of memory, while rank 0 waits for it."""
    if not model.ranks.leads:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    model.ranks.largest(1)


def killed(model: Model) -> None:
    """Rank 1 is gone without a word."""
    if not model.ranks.leads:
        os.kill(os.getpid(), signal.SIGKILL)
    model.ranks.largest(1)


def mistake(model: Model) -> None:
    """Rank 0 finds a mistake, while rank 1 waits for it."""
    if model.ranks.leads:
        raise ConfigError("something is wrong")
    model.ranks.largest(1)


def paused(model: Model) -> None:
    """Rank 0 was warned, all ranks have left the command."""
    if model.ranks.leads:
        raise Paused("a stage was warned")


def warned(model: Model) -> None:
    """Rank 0 waits for a warning."""
    if model.ranks.leads:
        heard: list[int] = []
        signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
        os.write(1, b"listening\n")
        while not heard:  # one that came before is blocked, not lost
            time.sleep(0.05)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        raise Paused("a stage was warned")


def well(model: Model) -> None:
    """Nothing happens."""


def main(fault: str) -> int:
    """The exit code that the fault leads to."""
    with joined(0) as ranks:
        if not ranks.leads:
            with resource_errors("rank 1"):
                ranks.follow()
            return 0
        model = ranks.open(Model)
        ranks.call(globals()[fault], model)
    return 0


if __name__ == "__main__":
    end(exit_code(lambda: main(sys.argv[1])))
