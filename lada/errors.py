"""Every error that LaDa raises on purpose.

    LadaError
    ├── ConfigError      a YAML file, an option or a command line is wrong
    ├── DataError        a dataset file or a record in it is wrong
    ├── ModelError       a model, its weights or its tokenizer is wrong
    ├── ExchangeError    a commit, a message or a payload is wrong: names party, stage, file and check
    ├── PlanError        plan.json does not fit the run
    ├── StageError       a stage ended without a commit, for good
    ├── ChangedError     code or configuration is not what the run began with
    ├── BusyError        another driver has the run
    ├── RanksError       another process of the same stage ended or does not answer
    ├── DeviceError      the GPUs that a stage's job asked for are not to be seen
    ├── ResourceError    something ran out; the next attempt may have it
    │   ├── DeviceMemoryError   the GPU's memory
    │   ├── HostMemoryError     the host's memory
    │   └── NoSpaceError        disk space or quota
    └── Paused           not a failure: a warned stage left a resume point

A user's mistake raises one of these; a broken invariant of ours is an ``assert``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from lada.space import is_full


class LadaError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what a process ends with."""

    exit_code = 1


class ConfigError(LadaError):
    """A configuration value, key or command line argument is not legal."""

    exit_code = 2


class DataError(LadaError):
    """A dataset file cannot be used as it is."""

    exit_code = 3


class ModelError(LadaError):
    """A model, its weights or its tokenizer cannot be used as it is."""

    exit_code = 4


class PlanError(LadaError):
    """The plan of a run is missing or does not fit the run."""

    exit_code = 6


class StageError(LadaError):
    """A stage did not commit and will not be tried again."""

    exit_code = 7


class ExchangeError(LadaError):
    """Something that a party wrote was refused.

    Args:
        check: name of the check that failed, e.g. ``sha256``.
        detail: what was found and what is legal.
        party: the party that wrote it.
        stage: its stage, e.g. ``r02-learn``.
        file: the file in question, relative to the stage's folder.
    """

    exit_code = 5

    def __init__(
        self, check: str, detail: str, *, party: str = "?", stage: str = "?", file: str = "?"
    ) -> None:
        super().__init__(f"{party}/{stage}/{file}: check '{check}' failed: {detail}")
        self.check, self.detail = check, detail
        self.party, self.stage, self.file = party, stage, file


class ChangedError(LadaError):
    """Code, packages or run.yaml are not what the run began with; ``AMEND=1`` insists."""

    exit_code = 8


class BusyError(LadaError):
    """Another driver is at work on the run; says which."""

    exit_code = 9


class RanksError(LadaError):
    """Another process of the same stage ended or does not answer; what it said itself counts for more."""

    exit_code = 16


class DeviceError(LadaError):
    """The GPUs that a stage's job asked for are not to be seen; it must not go on without them."""

    exit_code = 17


class ResourceError(LadaError):
    """Something ran out during a stage."""


class DeviceMemoryError(ResourceError):
    """The GPU's memory ran out; smaller micro-batches need less."""

    exit_code = 10


class HostMemoryError(ResourceError):
    """The host's memory ran out."""

    exit_code = 11


class NoSpaceError(ResourceError):
    """The disk or a quota on it is full."""

    exit_code = 12


class Paused(LadaError):
    """A stage that was warned has saved a resume point; its next attempt goes on from there."""

    exit_code = 85


def exit_code(command: Callable[[], int]) -> int:
    """Call a command; what it raised on purpose becomes a line on stderr and an exit code.

    So does what the system says of a file, and that a disk is full; any other error keeps its traceback.
    """
    try:
        code = command()
        sys.stdout.flush()  # here, not at the interpreter's end, where a closed pipe is no longer caught
        return code
    except LadaError as error:
        _last_words(f"{type(error).__name__}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _last_words("interrupted; the same command goes on where it was")
        return 130
    except BrokenPipeError:  # whoever read the output, `head` for one, has seen enough
        _last_words()
        return 141
    except OSError as error:
        if error.strerror is None or (error.filename is None and not is_full(error)):
            raise
        where = f"{error.filename}: " if error.filename else ""  # none where the file was open already
        _last_words(f"{where}{error.strerror}")
        return NoSpaceError.exit_code if is_full(error) else 1


def end(code: int) -> NoReturn:
    """End this process; if it is one of several ranks, at once.

    Threads of their process group that an interpreter's end finds at work may abort what has ended well.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _last_words(text: str = "") -> None:
    """Say why the process ends; a full disk must change neither that nor the exit code."""
    for stream, words in ((sys.stdout, ""), (sys.stderr, f"{text}\n" if text else "")):
        try:
            print(words, end="", file=stream, flush=True)
        except OSError:  # what is left in the buffer would fail again at the interpreter's end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


NOT_RETRIED = frozenset({2, 3, 4, 6, 8})
"""Exit codes after which trying the same stage again cannot help."""
