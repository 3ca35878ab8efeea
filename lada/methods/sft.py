"""SFT: clients learn the LLM's reasoning by cross-entropy; the LLM is fixed (baselines, section 6).

With ``selection: lada`` a client trains in each round on the very questions that it selected in that round of
a finished LaDa run of the same scenario, data and seed, so that only the loss differs.

Choice: LaDa's ids are replayed, not chosen by a filter of SFT's own, since the question is what the loss is
worth on the ids that LaDa's filter, taught by LaDa's loss, selects. The default is ``all``, which needs no
other run and is FedKD with ``server_update: none``. Choice: since the LLM never changes, its text on a
question is asked for and sent once; a client keeps it for later rounds.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from lada.answering import IDS, TEXTS, answer
from lada.config import SERVER, Options
from lada.imitation import imitate, publish_model, text_examples, text_logs
from lada.inbox import by_id
from lada.local import add_evaluation, measure, prepare_client, prepare_server
from lada.manifest import Outbox
from lada.method import Step
from lada.party import Party, records_payload
from lada.records import Response, SampleId, parse_jsonl
from lada.results import SAMPLES_FILE

RECEIVED = "state/received.jsonl"
ASKING, ANSWERING = ("prepare", "learn"), ("answer", "respond")


class Config(Options):
    """SFT's options.

    Attributes:
        selection: ``all`` public questions in every round, or ``lada``: what ``replay`` selected.
        replay: the finished LaDa run whose ids are replayed: a run id beside this run, or a folder.
    """

    selection: Literal["all", "lada"] = "all"
    replay: str | None = None

    @model_validator(mode="after")
    def _ids_come_from_somewhere(self) -> Config:
        if (self.selection == "lada") != (self.replay is not None):
            raise ValueError(
                "selection lada needs replay=<id or folder of a finished lada run>, and all none"
            )
        return self


def prepare(party: Party) -> Outbox:
    """Local fine-tuning; ask for the first round's texts."""
    outbox = prepare_client(party)
    _ask(party, outbox)
    return outbox


def answer_all(party: Party) -> Outbox:
    """Answer the whole public set, once, for all clients."""
    texts, outbox = answer(party, list(party.public))
    outbox.send("all", TEXTS, records_payload(list(texts.values()), "responses"))
    return outbox


def respond(party: Party) -> Outbox:
    """Answer what clients ask for; what another client asked for before is not generated again."""
    asked = {
        client: [record.id for record in party.inbox.latest(client, IDS, SampleId, steps=ASKING)]
        for client in party.partners
    }
    texts, outbox = answer(party, sorted(set().union(*asked.values())), keep_sampled=True)
    for client, ids in asked.items():
        sent = [texts[name] for name in sorted(ids) if name in texts]
        outbox.send(client, TEXTS, records_payload(sent, "responses"))
    return outbox


def learn(party: Party) -> Outbox:
    """Learn the LLM's texts of the round by cross-entropy, be measured, ask for the next round's."""
    model = party.open_model()
    new = party.inbox.latest(SERVER, TEXTS, Response, steps=ANSWERING)
    received = {**_received(party), **by_id(new)}
    wanted = _wanted(party, party.round)
    texts = {SERVER: {name: received[name] for name in wanted if name in received}}
    metrics = imitate(party, model, text_examples(party, model, texts))
    metrics[f"selected/{SERVER}"] = float(len(wanted))
    outbox = Outbox()
    publish_model(party, model, outbox)
    by = "all" if party.config.replayed is None else "replay"
    outbox.private[SAMPLES_FILE] = records_payload(text_logs(party, texts, by), "diagnostics")
    outbox.private[RECEIVED] = records_payload(list(received.values()), "state")
    add_evaluation(outbox, measure(party, model, "after the round"), metrics)
    if not party.is_last_round:
        _ask(party, outbox)
    return outbox


STEPS = (
    Step("prepare", server=prepare_server, client=prepare, once=True),
    Step("answer", server=answer_all, once=True, when=lambda options: options.selection == "all"),
    Step("respond", server=respond, when=lambda options: options.selection == "lada"),
    Step("learn", client=learn),
)


def _wanted(party: Party, round: int) -> list[str]:
    """Ids to train on in a round, sorted."""
    replayed = party.replayed(SERVER, round)
    return list(party.public) if replayed is None else replayed


def _ask(party: Party, outbox: Outbox) -> None:
    """Ask for the texts of the next round that were not asked for in an earlier one."""
    if party.config.replayed is None:
        return
    before = {name for number in range(1, party.round + 1) for name in _wanted(party, number)}
    asked = [SampleId(id=name) for name in _wanted(party, party.round + 1) if name not in before]
    outbox.send(SERVER, IDS, records_payload(asked, "ids"))


def _received(party: Party) -> dict[str, Response]:
    """Id -> text, of all that the server ever sent."""
    content = party.latest(RECEIVED)
    return dict(by_id(parse_jsonl(Response, (content or b"").decode(), source=RECEIVED)))
