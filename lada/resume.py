"""Resume points inside a stage: what a warned stage saves, and how its next attempt goes on from there.

A stage's long computations (training, generation, passes over many texts) are its phases, numbered in the
order in which the stage's code, which always does the same, comes to them. A warned phase saves its inner
state where it can be left and ends the attempt; the result of a finished phase is saved when losing it would
cost more than `MIN_SECONDS`. The next attempt runs the stage's code from its beginning, with saved phases
restored: on the CPU it commits the very bytes that an undisturbed one would have. A phase that another one
waits for (a hook of training that generates) has numbers of its own, and a pause inside it saves both.

Nothing here can change a number, so none of it is in run.yaml; LADA_RESUME_MIN_SECONDS is for tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lada.errors import ConfigError, Paused
from lada.exchange import committed_stages
from lada.manifest import MANIFEST
from lada.rundir import RunDir, Stage, sha256, sync_dir, write_synced

MIN_SECONDS = 60.0
"""Finished work that is redone after a warning rather than saved before one."""


class Saved(NamedTuple):
    """State of a computation: tensors by name, and JSON values, whose floats come back bit for bit."""

    tensors: Mapping[str, Tensor]
    values: Any


class Stateful(Protocol):
    """Something beside the model that changes while a phase runs."""

    def state(self) -> Saved:
        """All that changes."""

    def load_state(self, saved: Saved) -> None:
        """Put a `state` back."""


@dataclass
class Phase:
    """One long computation, as the loop inside it sees it.

    Attributes:
        point: where an earlier attempt left the computation; None: nowhere.
        result: what it came to in an earlier attempt; None: not known.
    """

    point: Saved | None = None
    result: Saved | None = None
    name: str = ""
    number: int = 0
    fingerprint: str = ""
    begun: float = 0.0
    resume: Resume | None = None
    scope: str = ""

    @property
    def warned(self) -> bool:
        """Whether the next safe point ends this attempt."""
        return self.resume is not None and self.resume.warned()

    def safe_point(self, state: Callable[[], Saved]) -> None:
        """To be called wherever the computation can be left.

        Args:
            state: from which it can go on.

        Raises:
            Paused: when the stage was warned; ``state`` has been saved.
        """
        if self.warned:
            self.pause(state)

    def pause(self, state: Callable[[], Saved]) -> None:
        """What a safe point does after a warning; nothing where no resume points are kept.

        Raises:
            Paused: ``state`` has been saved.
        """
        if self.resume is not None:
            self.resume.pause(self, state)

    def finish(self, state: Callable[[], Saved], *, lasting: bool = True) -> None:
        """To be called at the end, with the result.

        Args:
            lasting: whether ``state`` would give the same later in the stage; if not, the result is saved
                now or never.
        """
        if self.resume is not None and self.result is None:
            self.resume.finished(self, state, lasting=lasting)

    @contextlib.contextmanager
    def interrupted(self, place: int, state: Callable[[], Saved]) -> Iterator[None]:
        """Phases that are begun inside are a part of this one, which waits for them.

        Args:
            place: where this computation is; inner points hold for this place alone.
            state: from which this computation can go on, to be saved if an inner phase pauses.

        Raises:
            Paused: from an inner phase.
        """
        if self.resume is None:
            yield
            return
        with self.resume.inside(self, place, state):
            yield

    def __str__(self) -> str:
        return f"phase {self.scope}{self.number} ({self.name})"


class _Finished(NamedTuple):
    """A finished phase that is not saved yet."""

    phase: Phase
    state: Callable[[], Saved]
    seconds: float


class Resume:
    """The resume points of one attempt of one stage.

    Args:
        attempt: unique; another attempt may still be at work on a lost node.
        earlier: names of the stages before this one: the points hold only with these very commits.
        warned: whether this attempt was told to end soon.
        log: takes one line for a person.
        computed_by: ranks that the stage is computed by: the points hold only with the same.

    Attributes:
        inputs: message -> sha256, of what the stage has read so far; the points hold only with these.
    """

    def __init__(
        self,
        run: RunDir,
        stage: Stage,
        *,
        attempt: str,
        earlier: Sequence[str],
        warned: Callable[[], bool] = lambda: False,
        log: Callable[[str], None] = lambda line: None,
        computed_by: str = "1 rank",
    ) -> None:
        self.warned = warned
        self.inputs: Mapping[str, str] = {}
        self._stage, self._attempt, self._log = stage, attempt, log
        self._folder = run.resume(stage)
        self._min_seconds = _min_seconds()
        self._scope, self._number, self._fingerprint = "", 0, _origin(run, stage, earlier, computed_by)
        self._unsaved: list[_Finished] = []

    def begin(self, name: str, request: Sequence[object]) -> Phase:
        """The next phase; see the function `begin`."""
        self._number += 1
        asked = [self._fingerprint, self._number, name, request, sorted(self.inputs.items())]
        # With the one before in it, it stands for everything that was asked so far.
        self._fingerprint = sha256(json.dumps(asked, default=_described).encode())
        phase = Phase(
            name=name,
            number=self._number,
            fingerprint=self._fingerprint,
            begun=time.monotonic(),
            resume=self,
            scope=self._scope,
        )
        self._restore(phase)
        if phase.result is None and self.warned():
            self.pause(phase, None)
        return phase

    @contextlib.contextmanager
    def inside(self, outer: Phase, place: int, state: Callable[[], Saved]) -> Iterator[None]:
        """Number and save phases on their own while another one waits; see `Phase.interrupted`."""
        kept = self._scope, self._number, self._fingerprint, len(self._unsaved)
        self._scope, self._number = f"{outer.scope}{outer.number:05d}-{place:05d}-", 0
        self._fingerprint = sha256(f"{outer.fingerprint}/{place}".encode())
        try:
            yield
        except Paused:
            self._write(outer, state(), whole=False)  # not earlier: a model may have been merged inside
            raise
        finally:
            self._scope, self._number, self._fingerprint, unsaved = kept
            del self._unsaved[unsaved:]  # the outer phase holds what came of them

    def pause(self, phase: Phase, state: Callable[[], Saved] | None) -> None:
        """Save all that is worth it and end this attempt.

        Raises:
            Paused: always.
        """
        if state is not None:
            self._write(phase, state(), whole=False)
        self._save_finished()
        raise Paused(f"{self._stage} was warned and pauses in {phase}; its next attempt goes on there")

    def finished(self, phase: Phase, state: Callable[[], Saved], *, lasting: bool) -> None:
        """Save a result now, later or never; see `Phase.finish`."""
        seconds = time.monotonic() - phase.begun
        if lasting:
            self._unsaved.append(_Finished(phase, state, seconds))
            seconds = sum(one.seconds for one in self._unsaved)
        if seconds < self._min_seconds:
            return
        try:
            if lasting:
                self._save_finished()
            else:
                self._write(phase, state(), whole=True)
        except OSError as error:  # it would save time, nothing more
            self._log(f"resume point of {phase} could not be written: {error}")

    def _save_finished(self) -> None:
        while self._unsaved:
            one = self._unsaved.pop()
            self._write(one.phase, one.state(), whole=True)

    def _restore(self, phase: Phase) -> None:
        """Look for what an earlier attempt left of a phase; what cannot be used is removed."""
        path = self._folder / _name(phase)
        if not path.is_file():
            return
        try:
            head, tensors = _decode(path.read_bytes())
            saved, whole = Saved(tensors, head["values"]), bool(head["whole"])
            problem = "" if head["fingerprint"] == phase.fingerprint else "is of another request"
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            problem = f"is broken ({type(error).__name__}: {str(error)[:200]})"
        if problem:
            self._log(f"resume point of {phase} {problem}: ignored, the phase begins anew")
            path.unlink(missing_ok=True)
        elif whole:
            phase.result = saved
            self._log(f"{phase} was finished by an earlier attempt")
        else:
            phase.point = saved
            self._log(f"{phase} goes on where an earlier attempt paused")

    def _write(self, phase: Phase, saved: Saved, *, whole: bool) -> None:
        """Put a point in the place of the phase's older one, whole or not at all."""
        head = {"fingerprint": phase.fingerprint, "name": phase.name, "whole": whole, "values": saved.values}
        data = _encode(json.dumps(head), saved.tensors)
        path = self._folder / _name(phase)
        temporary = path.with_name(f".{path.name}.{self._attempt}.tmp")
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            write_synced(temporary, data)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_dir(self._folder)
        self._log(f"resume point of {phase} written, {len(data) / 1e6:.1f} MB")


def begin(resume: Resume | None, name: str, *request: object) -> Phase:
    """Begin a phase.

    Args:
        resume: None: nothing is saved or restored.
        name: what kind of computation it is.
        request: all that decides its result, given what came before it in the stage: what JSON can hold,
            dataclasses, options and tensors (a saved point of another request is never used).

    Raises:
        Paused: when the stage was warned before the phase began.
    """
    return Phase() if resume is None else resume.begin(name, request)


def _name(phase: Phase) -> str:
    return f"{phase.scope}{phase.number:05d}.safetensors"


def _described(value: object) -> object:
    """What JSON does not know: a tensor by its digest, anything else by its fields."""
    if isinstance(value, Tensor):
        return _digest("tensor", {"": value.detach().cpu().contiguous()})
    return vars(value)


def _encode(head: str, tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file with ``head`` and a digest of everything among its metadata."""
    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return save_tensors(whole, metadata={"head": head, "sha256": _digest(head, whole)})


def _decode(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The opposite of `_encode`.

    Raises:
        SafetensorError, ValueError, KeyError, TypeError: when the file is not what was written.
    """
    tensors = load_tensors(data)
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    if metadata["sha256"] != _digest(metadata["head"], tensors):
        raise ValueError("its sha256 is not what was written")
    head: dict[str, Any] = json.loads(metadata["head"])
    return head, tensors


def _digest(head: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(head.encode())
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _origin(run: RunDir, stage: Stage, earlier: Sequence[str], computed_by: str) -> str:
    """Digest of what a stage starts from: configuration, code, the party's own commits, the ranks."""
    own = [run.commit(one) / MANIFEST for one in committed_stages(run, stage.party) if one.name in earlier]
    digests = [sha256(path.read_bytes()) for path in (run.run_yaml, *own)]
    if run.provenance_json.is_file():
        digests.append(json.loads(run.provenance_json.read_text(encoding="utf-8"))["code"])
    return sha256("/".join([*digests, computed_by]).encode())


def _min_seconds() -> float:
    text = os.environ.get("LADA_RESUME_MIN_SECONDS", str(MIN_SECONDS))
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"LADA_RESUME_MIN_SECONDS is '{text}'; legal: a number of seconds") from error
