"""Several processes that compute one stage: rank 0 leads, the others follow it, command by command.

torchrun starts ``python -m lada step`` once per rank. Rank 0 runs the stage's code as if it were alone: it
alone reads messages, draws, decides, writes, commits, logs and heeds warnings. What needs all ranks' weights
or hands is a command: a function of the model that all ranks call with the same arguments, at the same time.
So methods, and the filter with them, know nothing of ranks. Messages stay in the stage's own process group,
which belongs to one party. A process that is alone has `ALONE`: then a command is an ordinary call.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from lada.errors import ConfigError, Paused, RanksError

T = TypeVar("T")
Share = TypeVar("Share")

COLLECTIVE = timedelta(minutes=30)
"""How long ranks wait for each other inside a command."""
COMMAND = timedelta(days=7)
"""How long a rank waits for the next command: rank 0 may be busy alone. If rank 0 dies, it does not wait."""


PATIENCE = 5.0
"""Seconds that a rank which lost another one waits before it ends too."""


class Follows(Protocol):
    """What commands are about: a model, which knows the ranks that hold it.

    Attributes:
        network: the module; a command that makes passes puts it into evaluation or training mode, since only
            rank 0's has seen what came before.
    """

    ranks: Ranks
    network: Any


class Ranks:
    """The processes of one stage, as one of them sees them.

    Attributes:
        index: of this rank; 0 leads.
        size: number of ranks.
        zero: what DeepSpeed shares among the ranks: 1 optimiser states, 2 gradients too, 3 weights too;
            0: nothing, gradients are added up.
        device: where this rank computes.
    """

    def __init__(
        self, index: int = 0, size: int = 1, *, zero: int = 0, device: str = "cpu", commands: Any = None
    ) -> None:
        self.index, self.size, self.zero, self.device = index, size, zero, torch.device(device)
        self._commands = commands
        self._inside = self._broken = False
        self._model: Any = None

    def __deepcopy__(self, memo: object) -> Ranks:
        return self

    def __str__(self) -> str:
        return "1 rank" if self.size == 1 else f"{self.size} ranks, ZeRO stage {self.zero}"

    @property
    def leads(self) -> bool:
        """Whether this rank runs the stage."""
        return self.index == 0

    @property
    def shards(self) -> bool:
        """Whether a rank holds a share of the weights: then all ranks make the same passes in step."""
        return self.size > 1 and self.zero == 3

    # -- commands

    def open(self, opener: Callable[..., T], *arguments: object) -> T:
        """``opener(ranks, *arguments)`` on every rank; what it returns is the model of later commands."""
        self._tell((True, opener, arguments))
        found = self._model = opener(self, *arguments)
        return found

    def call(self, function: Callable[..., T], model: Follows, *arguments: object, **own: object) -> T:
        """``function(model, *arguments)`` on every rank.

        Inside a command, where every rank is already, it is a call on this rank alone.

        Args:
            function: of a module, by whose name it is found on the other ranks.
            own: further arguments of rank 0's call, which the others do without.

        Returns:
            What rank 0's call returned.
        """
        if self._inside or self.size == 1:
            return function(model, *arguments, **own)
        assert model is self._model, "the ranks have opened another model since"
        self._tell((False, function, arguments))
        self._inside = self._broken = True
        try:
            found = function(model, *arguments, **own)
            self._broken = False
            return found
        except Paused:  # is raised where all ranks have left the command
            self._broken = False
            raise
        finally:
            self._inside = False

    def follow(self) -> None:
        """Do what rank 0 says until it ends.

        Raises:
            RanksError: when rank 0 is gone.
        """
        self._inside = True
        while (told := _broadcast(None, self._commands)) is not None:
            opens, function, arguments = told
            if opens:
                self._model = None  # not two at a time
                self._model = function(self, *arguments)
            else:
                function(self._model, *arguments)

    def dismiss(self) -> None:
        """Rank 0's last word."""
        self._tell(None)

    def _tell(self, message: object) -> None:
        if self.size > 1 and not self._broken:  # else the others may never be done with the last command
            _broadcast(message, self._commands)

    # -- inside a command

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in order, on rank 0; nothing on the others."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(value, found, dst=0, group=self._commands)
        return [] if found is None else found

    def scatter(self, values: Sequence[T] | None) -> T:
        """This rank's one of rank 0's values."""
        if self.size == 1:
            assert values is not None
            return values[0]
        found: list[Any] = [None]
        dist.scatter_object_list(found, None if values is None else list(values), src=0, group=self._commands)
        mine: T = found[0]
        return mine

    def sums(self, *values: int) -> list[int]:
        """Sum of each value over the ranks, on every rank."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, value: int) -> int:
        """The largest of the ranks' values, on every rank."""
        return self._reduced([value], dist.ReduceOp.MAX)[0]

    def _reduced(self, values: Sequence[int], how: Any) -> list[int]:
        if self.size == 1:
            return list(values)
        found = torch.tensor(values)
        dist.all_reduce(found, how, group=self._commands)
        numbers: list[int] = found.tolist()
        return numbers

    def add_up(self, values: Sequence[torch.Tensor]) -> None:
        """Replace tensors by their sums over the ranks."""
        for value in values if self.size > 1 else ():
            dist.all_reduce(value)

    def send(self, value: torch.Tensor) -> None:
        """Give every rank rank 0's content of a tensor."""
        if self.size > 1:
            dist.broadcast(value, src=0)


ALONE = Ranks()
"""A process that computes a stage by itself."""


def each(
    model: Follows,
    work: Callable[..., T],
    shares: Sequence[Share],
    *arguments: object,
) -> list[T]:
    """A command: ``work(model, share, *arguments)`` of every share, each on a rank of its own.

    To be called through `Ranks.call`, with no more shares than there are ranks. A rank without one does the
    last one too, and nobody reads it: where weights are shared, all ranks must make the same passes.

    Returns:
        Results in the order of the shares, on rank 0.
    """
    ranks = model.ranks
    found = None
    if not ranks.leads:
        model.network.eval()
    if ranks.index < len(shares) or ranks.shards:
        with torch.no_grad():
            found = work(model, shares[min(ranks.index, len(shares) - 1)], *arguments)
    gathered: list[Any] = ranks.gather(found)[: len(shares)]
    return gathered


def bundles(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive items, ``size`` at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


@contextlib.contextmanager
def joined(zero: int) -> Iterator[Ranks]:
    """The ranks that torchrun started; `ALONE` where it started none or one.

    Args:
        zero: see `Ranks`.

    Raises:
        ConfigError: there are more ranks than GPUs.
        RanksError: from inside, when another rank ended or did not answer.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one node: no need of a name that resolves
    device, backend = "cpu", "gloo"
    if torch.cuda.is_available():
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ConfigError(
                f"rank {local} of this node has no GPU, {there} are visible: the cluster file must not ask "
                "for more ranks than gpus"
            )
        device, backend = f"cuda:{local}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    with _answering():
        dist.init_process_group(backend, timeout=COLLECTIVE)
        commands = dist.new_group(backend="gloo", timeout=COMMAND)
        ranks = Ranks(dist.get_rank(), size, zero=zero, device=device, commands=commands)
        try:
            yield ranks
        except Paused:
            ranks.dismiss()
            raise
        # After any other error torchrun ends the others.
        if ranks.leads:
            ranks.dismiss()
        dist.barrier(group=commands)  # nobody hangs up while another one listens
        dist.destroy_process_group()


_LOST = ("gloo/", "Connection closed by peer", "NCCL", "Timed out waiting", "Broken pipe")
"""What torch says in a bare RuntimeError when another process is gone."""


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(text in str(error) for text in _LOST):
            said = next(iter(str(error).splitlines()), type(error).__name__)
            time.sleep(PATIENCE)  # the guilty one's exit code is the one to be seen first
            raise RanksError(f"another rank ended or does not answer: {said}") from error
        raise


def _broadcast(message: object, group: Any) -> Any:
    box = [message]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]
