"""FedKD: every party learns the other side's reasoning on all public questions (baselines, section 3).

Round 0 is Standalone. Every round each side answers the complete public set by greedy reasoning, right, wrong
or without a letter, and learns the other side's texts by cross-entropy: clients the server's, and with
``server_update: sft_on_slm`` the server the mean over clients.

Choice: an LLM that is never trained (``server_update: none``) answers once and sends once; clients keep its
texts, since another round would send the same bytes. The variant of the method that the paper cites, which
exchanges class-averaged option logits, is left out: a letter is no class when options are shuffled.

With ``plugin: lada`` nothing of FedKD's own is left: LaDa's filters replace "all questions" and its loss the
cross-entropy, in both directions, so the run is that of ``METHOD=lada``, and ``lada.schedule`` is its order.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from lada import plugin
from lada.answering import OWN_TEXTS, TEXTS, answer
from lada.answers import extract_letter
from lada.config import SERVER
from lada.imitation import imitate, publish_model, text_examples, text_logs
from lada.inbox import by_id
from lada.local import add_evaluation, measure, prepare_client, prepare_server
from lada.manifest import Outbox
from lada.method import Step
from lada.party import Party, records_payload
from lada.plugin_options import HostOptions, alone, hosted
from lada.records import Response, parse_jsonl
from lada.results import SAMPLES_FILE

ANSWERING = ("respond", "answer")
"""Steps that send texts; of a party, one configuration has one of them."""


class Config(HostOptions):
    """FedKD's options.

    Attributes:
        server_update: ``sft_on_slm`` trains the LLM on its clients' texts, as in the paper's tables; ``none``
            is the literal sentence: only clients learn.
        schedule: ``parallel`` has both sides learn from texts of the round's start; ``sequential`` has the
            server learn first and answer afterwards, as FedMKT does.
        drop_unparsed: leave out texts without a letter (for an analysis; the method takes every text).
        plugin: ``lada`` puts LaDa's selection and loss in place of ``server_update``, ``schedule`` and
            ``drop_unparsed``.
        lada: options of LaDa as ``METHOD=lada`` takes them, with ``plugin=lada`` alone.
    """

    server_update: Literal["none", "sft_on_slm"] = "sft_on_slm"
    schedule: Literal["parallel", "sequential"] = "parallel"
    drop_unparsed: bool = False

    @model_validator(mode="after")
    def _one_way_has_one_order(self) -> Config:
        if self.schedule == "sequential" and self.server_update == "none":
            raise ValueError("schedule sequential needs server_update sft_on_slm: there is nothing to order")
        return self


def respond(party: Party) -> Outbox:
    """Answer the whole public set with the model as it stands, for the other side."""
    texts, outbox = answer(party, list(party.public))
    sent = records_payload(list(texts.values()), "responses")
    outbox.send("all" if party.role == "server" else SERVER, TEXTS, sent)
    return outbox


def learn(party: Party) -> Outbox:
    """Learn the other side's texts by cross-entropy, and be measured."""
    model, texts = party.open_model(), received(party)
    metrics = imitate(party, model, text_examples(party, model, texts))
    outbox = Outbox()
    publish_model(party, model, outbox)
    own = parse_jsonl(Response, (party.latest(OWN_TEXTS) or b"").decode(), source=OWN_TEXTS)
    outbox.private[SAMPLES_FILE] = records_payload(
        text_logs(party, texts, "all", own=by_id(own)), "diagnostics"
    )
    add_evaluation(outbox, measure(party, model, "after the round"), metrics)
    return outbox


def received(party: Party) -> dict[str, dict[str, Response]]:
    """Partner -> id -> its newest text."""
    assert isinstance(party.options, Config)
    found = {}
    for partner in party.partners:
        texts = by_id(party.inbox.latest(partner, TEXTS, Response, steps=ANSWERING))
        found[partner] = {
            name: text
            for name, text in texts.items()
            if not party.options.drop_unparsed or extract_letter(text.text, party.public[name].options)
        }
    return found


def _order(options: Config) -> str:
    return "one-way" if options.server_update == "none" else options.schedule


STEPS = alone(
    Step("prepare", server=prepare_server, client=prepare_client, once=True),
    Step("answer", server=respond, once=True, when=lambda options: _order(options) == "one-way"),
    Step("respond", server=respond, client=respond, when=lambda options: _order(options) == "parallel"),
    Step("respond", client=respond, when=lambda options: _order(options) == "sequential"),
    Step("teach", server=learn, when=lambda options: _order(options) == "sequential"),
    Step("answer", server=respond, when=lambda options: _order(options) == "sequential"),
    Step("learn", server=learn, client=learn, when=lambda options: _order(options) == "parallel"),
    Step("learn", client=learn, when=lambda options: _order(options) != "parallel"),
) + hosted(*plugin.STEPS)
