"""What a stage reads: messages that others addressed to its party in earlier steps, verified when opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from lada.config import SERVER, RunConfig
from lada.exchange import Message, inbox_messages, message_records, read_message
from lada.payloads import Origin
from lada.plan import Plan
from lada.provenance import run_hashes
from lada.records import Record
from lada.rundir import RunDir, Stage

R = TypeVar("R", bound=Record)


class Inbox:
    """Messages to one party, newest first; each is opened and checked at most once.

    Attributes:
        read: message name -> sha256 of its manifest, for all that was opened (recorded in the commit).
    """

    def __init__(self, run: RunDir, config: RunConfig, plan: Plan, stage: Stage) -> None:
        self._run, self._limits = run, config.exchange
        self._hashes = run_hashes(run)
        self._stage, self._earlier = stage, list(reversed(plan.before(stage)))
        self._takes_part = {(step.name, role) for step in plan.steps for role in step.roles}
        self._open: dict[tuple[str, str, str], Message] = {}
        self._legal_ids = {question.id for question in run.public_questions()}
        self.read: dict[str, str] = {}

    def latest(self, sender: str, name: str, kind: type[R], *, steps: Collection[str]) -> list[R]:
        """Records that a sender addressed to this party in the newest earlier stage of the named steps.

        Args:
            name: of the file in the message.
            steps: names of steps in which this file is sent.

        Raises:
            ExchangeError: check ``missing`` when that stage's message or file is not there (an older one
                never stands in for it), else when it is not what it should be.
        """
        role = "server" if sender == SERVER else "client"
        for stage in self._earlier:
            step = stage.split("-", 1)[1]
            if step not in steps or (step, role) not in self._takes_part:
                continue
            for key in inbox_messages(self._run, self._stage.party, [sender], [stage]):
                message = self._message(key)
                if name in message.contents:
                    return message_records(
                        message, name, kind, limits=self._limits, legal_ids=self._legal_ids
                    )
            raise Origin(sender, stage, name).error("missing", f"nothing for {self._stage.party} is there")
        return []

    def _message(self, key: tuple[str, str, str]) -> Message:
        if key not in self._open:
            sender, address, stage = key
            message = read_message(
                self._run, sender, address, stage, limits=self._limits, run_hashes=self._hashes
            )
            self._open[key] = message
            self.read[message.name] = message.digest
        return self._open[key]


def partners(name: str, clients: Sequence[str]) -> tuple[str, ...]:
    """The other side of each pair that a party is in: the server for a client, all clients for the server."""
    return tuple(clients) if name == SERVER else (SERVER,)


def by_id(records: Sequence[R]) -> Mapping[str, R]:
    """Records by their sample id."""
    return {getattr(record, "id"): record for record in records}  # noqa: B009  # every wire record has an id
