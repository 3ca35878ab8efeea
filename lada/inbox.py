"""What a stage reads: messages that others addressed to its party in earlier steps, verified when opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lada.config import SERVER, RunConfig
from lada.exchange import ALL, inbox_messages
from lada.incoming import Message, message_questions, message_records, question_messages, read_message
from lada.payloads import Origin, check_logits
from lada.plan import Plan
from lada.provenance import run_hashes
from lada.records import Record
from lada.rundir import RunDir, Stage
from lada.synthetic import QUESTIONS, VOTE_KEYS, VOTES, Synthetic, read_votes

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
        message = self._newest(sender, name, steps)
        if message is None:
            return []
        return message_records(message, name, kind, limits=self._limits, legal_ids=self._legal_ids)

    def latest_logits(
        self, sender: str, name: str, *, steps: Collection[str]
    ) -> tuple[dict[str, NDArray[np.generic]], Origin]:
        """As `latest`, for a file of the kind ``logits``: its arrays, and who wrote it."""
        message = self._newest(sender, name, steps)
        if message is None:
            return {}, Origin(sender, "?", name)
        origin = message.origin(name)
        content, count = message.contents[name], len(self._legal_ids)
        return check_logits(content, origin, limits=self._limits, num_public=count), origin

    def questions(self, *, steps: Collection[str] = ()) -> list[Synthetic]:
        """All synthetic questions that the server published in earlier stages, in the order of publication.

        Args:
            steps: names of the server's steps that publish a file of questions, even an empty one.

        Raises:
            ExchangeError: check ``missing`` when a stage of these steps has published nothing.
        """
        for stage in reversed(self._earlier):
            if self._is_of(stage, SERVER, steps) and not question_messages(self._run, [stage]):
                raise Origin(SERVER, stage, QUESTIONS).error("missing", "no questions are there")
        return self._questions

    def votes(
        self, sender: str, *, steps: Collection[str]
    ) -> tuple[Mapping[str, NDArray[np.float32]], Origin]:
        """A client's newest votes, and who wrote them: ``near`` and ``far`` [V].

        V is how many questions were there when the client voted: the first V in the order of publication.
        """
        message = self._newest(sender, VOTES, steps)
        if message is None:
            return {key: np.zeros(0, dtype=np.float32) for key in VOTE_KEYS}, Origin(sender, "?", VOTES)
        origin = message.origin(VOTES)
        count = len(self._questions_before(message.manifest.stage))
        content, most = message.contents[VOTES], self._limits.max_items
        return read_votes(content, origin, num_questions=count, most=most), origin

    @cached_property
    def _questions(self) -> list[Synthetic]:
        return self._questions_before(self._stage.name)

    def _questions_before(self, name: str) -> list[Synthetic]:
        """Questions that were there when the stage of this name began."""
        place = self._earlier.index(name) + 1 if name in self._earlier else 0
        found: list[Synthetic] = []
        for stage in question_messages(self._run, reversed(self._earlier[place:])):
            message = self._message((SERVER, ALL, stage))
            found += message_questions(message, limits=self._limits, first=len(found))
        return found

    @cached_property
    def _legal_ids(self) -> set[str]:
        """Ids of the public set and of all questions that the server published before this stage."""
        public = {question.id for question in self._run.public_questions()}
        return public | {question.id for question in self._questions}

    def _is_of(self, stage: str, sender: str, steps: Collection[str]) -> bool:
        step = stage.split("-", 1)[1]
        role = "server" if sender == SERVER else "client"
        return step in steps and (step, role) in self._takes_part

    def _newest(self, sender: str, name: str, steps: Collection[str]) -> Message | None:
        for stage in self._earlier:
            if not self._is_of(stage, sender, steps):
                continue
            for key in inbox_messages(self._run, self._stage.party, [sender], [stage]):
                message = self._message(key)
                if name in message.contents:
                    return message
            raise Origin(sender, stage, name).error("missing", f"nothing for {self._stage.party} is there")
        return None

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
