"""Start the ranks of a stage on this node: ``python -m lada.torchrun <options of torchrun> -m lada step …``.

torchrun itself would end with 1 whatever its ranks ended with, and would die of a warning (USR2) that is
meant for them. This one ends with the exit code of the rank that failed first, and passes warnings on.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from lada.errors import RanksError

_VAGUE = (1, RanksError.exit_code)
"""Exit codes that say less than any other: an error nobody foresaw, and the loss of another rank."""


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; returns the exit code of its ranks."""
    # Blocked before any rank starts: a rank unblocks it once it can heed it, so that none is lost or deadly.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    threading.Thread(target=_pass_warnings_on, daemon=True).start()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    parser = get_args_parser()
    parser.allow_abbrev = False  # `lada step --run` is none of its --run-path
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the last words are the rank's
    try:
        run(parser.parse_args(list(arguments)))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        killed = [rank for rank, code in codes.items() if code < 0]
        code = exit_code(codes.values())
        if len(killed) == len(codes):  # nobody has said anything
            name = signal.Signals(code - 128).name
            sys.stderr.write(f"rank {killed[0]} was ended by {name}\n")
        return code
    return 0


def exit_code(codes: Iterable[int]) -> int:
    """Of those that ranks ended with at the same time (negative: by a signal), the one that says most."""
    code = min(codes, key=lambda one: (one < 0, one in _VAGUE))
    return code if code >= 0 else 128 - code


def _pass_warnings_on() -> None:
    while True:
        signal.sigwait({signal.SIGUSR2})
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                try:
                    os.kill(int(child), signal.SIGUSR2)
                except ProcessLookupError:  # it has ended
                    continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
