"""What a stage reads: messages that others addressed to its party in earlier steps, verified when opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from lada.config import SERVER, RunConfig
from lada.exchange import Message, inbox_messages, message_records, read_message
from lada.plan import Plan
from lada.records import Record
from lada.rundir import RunDir, Stage, sha256

R = TypeVar("R", bound=Record)


class Inbox:
    """Messages to one party, newest first; each is opened and checked at most once.

    Attributes:
        read: message name -> sha256 of its manifest, for all that was opened (recorded in the commit).
    """

    def __init__(self, run: RunDir, config: RunConfig, plan: Plan, stage: Stage) -> None:
        self._run, self._limits = run, config.exchange
        self._hash = sha256(run.run_yaml.read_bytes())
        senders = [party.name for party in config.parties if party.name != stage.party]
        self._index = inbox_messages(run, stage.party, senders, reversed(plan.before(stage)))
        self._open: dict[tuple[str, str, str], Message] = {}
        self._legal_ids = {question.id for question in run.public_questions()}
        self.read: dict[str, str] = {}

    def latest(self, sender: str, name: str, kind: type[R]) -> list[R]:
        """Records of the newest message of a sender that holds a file of this name; empty if there is none.

        Raises:
            ExchangeError: when that message, or its file, is not what it should be.
        """
        for key in self._index:
            if key[0] != sender:
                continue
            message = self._message(key)
            if name in message.contents:
                return message_records(message, name, kind, limits=self._limits, legal_ids=self._legal_ids)
        return []

    def _message(self, key: tuple[str, str, str]) -> Message:
        if key not in self._open:
            sender, address, stage = key
            message = read_message(
                self._run, sender, address, stage, limits=self._limits, run_hash=self._hash
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
