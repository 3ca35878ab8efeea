"""FedMKT: selective mutual knowledge transfer by logits of shared texts (baselines, section 4).

Round 0: ``prepare`` fine-tunes locally, ``vote`` and ``label`` give every public question one letter, since
the public set has none. Every round, ``share``: a client trains on its private questions and sends what it
knows of the shared texts; ``teach``: the server picks for each text whom to learn from, trains, and sends
what it then knows; ``learn``: each client does the same with the server's knowledge.

Choice: labels are settled once, as those of a labelled public set would be; ``prepare`` stands for the
private training of round 1, so that there is one a round. What the server sent at a round's end is its own
snapshot in the next. The options stand in the prompt and a letter answers, as everywhere in this suite; in
FedMKT's own experiments the options are hidden and their text is the target.

With ``plugin: lada`` two things of FedMKT's stay: clients train on their private questions every round
before they share (``training.local``), and the server learns first, its clients then from what it has become.
LaDa's filters replace the choice by cross-entropy, its loss both terms of FedMKT's, texts and ids replace
logits. The reference policy stays that of round 0. Choice: intersecting both choices (``compose: intersect``)
is left out; with LaDa as a guest no logits are sent, so there is no cross-entropy to choose by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lada import plugin
from lada.allocations import open_allocations, selected
from lada.answering import answer
from lada.answers import extract_letter
from lada.config import SERVER, Fraction
from lada.errors import ModelError
from lada.exchange import ALL
from lada.imitation import publish_model
from lada.inbox import by_id
from lada.knowledge import Knowledge
from lada.labels import coded, decoded, labelled, majority
from lada.language_model import LanguageModel
from lada.local import (
    add_evaluation,
    add_metrics,
    measure,
    prepare_client,
    prepare_server,
    train,
    train_locally,
)
from lada.losses import SoftLoss
from lada.manifest import Outbox, Payload
from lada.method import Step
from lada.party import MODEL_FILE, Party, json_payload, model_payloads, records_payload, tensors_payload
from lada.payloads import Origin
from lada.plugin_options import HostOptions, alone, hosted
from lada.records import Letter, Response, SampleLog, parse_jsonl
from lada.results import METRICS_FILE, SAMPLES_FILE
from lada.selection.min_ce import Rule, source_weights
from lada.shared_texts import SharedTexts, TransferOptions, source_metrics, transfer_metrics
from lada.training import Example
from lada.training_state import StepLog

VOTES, TEXTS, KNOWLEDGE = "letters.safetensors", "texts.jsonl", "logits.safetensors"
OWN_TEXTS, OWN_KNOWLEDGE = "state/shared_texts.jsonl", "state/logits.safetensors"
ALIGNMENTS = "state/alignments.json"


class Config(TransferOptions, HostOptions):
    """FedMKT's options.

    Attributes:
        mode: ``letter`` shares the four letters' logits where a bare letter answers the question; ``seq``
            shares the likeliest tokens along the LLM's reasoning and the label.
        top_k: tokens per position in ``seq``.
        align: ``offset`` reads the row after the same text, none where there is no such row; ``dtw`` is
            FedMKT's dynamic time warping, with the next token as target where that finds no partner.
        temperature: of the distributions that are learnt.
        label_source: ``vote`` takes the letter that most models' reasoning ends with, the LLM's where they
            tie; ``llm`` takes the LLM's: it then knows nearly every text best, and hardly anything is
            transferred to it. ``oracle`` reads the sealed answers; run and results are then named so.
        selection: ``greater`` learns from whom a text surprises least, be it the party's own snapshot;
            ``weighted_mean`` from all, weighted by that; ``paper`` from the best other where it beats the
            own, and leaves the rest out.
        hard_weight: FedMKT's lambda, the share of the plain cross-entropy on the labelled texts.
        server_update: ``none`` keeps the LLM as it came: its knowledge is sent once, and clients send
            nothing.
        plugin: ``lada`` puts LaDa's selection and loss in place of all other options here.
        lada: options of LaDa as ``METHOD=lada`` takes them, with ``plugin=lada`` alone.
    """

    IDLE: ClassVar = ("schedule",)
    label_source: Literal["vote", "llm", "oracle"] = "vote"
    selection: Rule = "greater"
    hard_weight: Fraction = 0.9
    server_update: Literal["kd", "none"] = "kd"


# -- steps of round 0


def vote(party: Party) -> Outbox:
    """Answer the public set by reasoning and send the letters, a byte each."""
    texts, outbox = answer(party, list(party.public))
    letters = [_letter(party, texts, name) for name in party.public]
    outbox.send(SERVER, VOTES, _numbers({"letters": coded(letters)}))
    return outbox


def label(party: Party) -> Outbox:
    """Settle the label of every public question, share the labelled texts, look at them before any training.

    A question without a label is left out, in ``seq`` mode also one on which the LLM came to no end.
    """
    options = _options(party)
    own, outbox = answer(party, list(party.public))
    letters = settle(party, own)
    if options.mode == "letter":
        texts: dict[str, str] = dict(letters)
        outbox.send(ALL, VOTES, _numbers({"letters": coded([letters.get(name) for name in party.public])}))
    else:
        texts = {name: labelled(own[name].text, one) for name, one in letters.items() if name in own}
        outbox.send(ALL, TEXTS, _texts_payload(texts, "responses"))
    if not texts:
        raise ModelError("no public question has a label and a text: the models came to no answer")
    outbox.private[OWN_TEXTS] = _texts_payload(texts, "state")
    outbox.private[SAMPLES_FILE] = _label_logs(party, letters, own)
    known = SharedTexts(party, party.open_model(), texts, options).known()
    _keep(known, outbox)
    if options.server_update == "none":
        outbox.send(ALL, KNOWLEDGE, _message(known, texts, options))
    add_metrics(outbox, {"shared_texts": float(len(texts)), "labels": float(len(letters))})
    return outbox


def settle(party: Party, own: Mapping[str, Response]) -> dict[str, Letter]:
    """Public id -> label, by ``label_source``; questions on which nobody came to a letter are left out."""
    source = _options(party).label_source
    if source == "oracle":
        return {name: party.answers[name] for name in party.public}
    voters = [[_letter(party, own, name) for name in party.public]]
    if source == "vote":
        for client in party.partners:
            arrays, origin = party.inbox.latest_logits(client, VOTES, steps=("vote",))
            voters.append(decoded(arrays, len(party.public), origin))
    settled = zip(party.public, (majority(votes) for votes in zip(*voters, strict=True)), strict=True)
    return {name: letter for name, letter in settled if letter is not None}


# -- steps of every round


def share(party: Party) -> Outbox:
    """Train on the private questions (from round 2 on: `prepare` did it before), then say what is known."""
    options, model, outbox = _options(party), party.open_model(), Outbox()
    steps = _train_privately(party, model, outbox)
    texts = shared_texts(party)
    known = SharedTexts(party, model, texts, options).known()
    _keep(known, outbox)
    if options.server_update != "none":
        outbox.send(SERVER, KNOWLEDGE, _message(known, texts, options))
    outbox.private[METRICS_FILE] = json_payload({"private_steps": float(len(steps))}, "metrics")
    return outbox


def teach(party: Party) -> Outbox:
    """The server learns from its clients' knowledge and sends its own as it is afterwards."""
    _, shared, outbox = _learn(party)
    known = shared.known()
    _keep(known, outbox)
    outbox.send(ALL, KNOWLEDGE, _message(known, shared_texts(party), _options(party)))
    return outbox


def learn(party: Party) -> Outbox:
    """A client learns from the server's knowledge."""
    return _learn(party)[2]


# -- steps with LaDa as a guest


def train_and_respond(party: Party) -> Outbox:
    """Train on the private questions as `share` does, then answer what was selected and asked for."""
    model, trained = party.open_model(), Outbox()
    steps = _train_privately(party, model, trained)
    mine = selected(open_allocations(party))
    outbox = plugin.send_texts(party, mine, plugin.asked(party), model=model)
    outbox.private |= trained.private
    add_metrics(outbox, {"private_steps": float(len(steps))})
    return outbox


def respond_for_itself(party: Party) -> Outbox:
    """The server's own texts on what it selected; its clients get theirs when it has learnt."""
    return plugin.send_texts(party, selected(open_allocations(party)), {})


STEPS = alone(
    Step("prepare", server=prepare_server, client=prepare_client, once=True),
    Step("vote", client=vote, once=True, when=lambda options: options.label_source == "vote"),
    Step("label", server=label, once=True),
    Step("share", client=share),
    Step("teach", server=teach, when=lambda options: options.server_update != "none"),
    Step("learn", client=learn),
) + hosted(
    Step(
        "prepare",
        server=plugin.prepare_server_and_select,
        client=plugin.prepare_client_and_select,
        once=True,
    ),
    Step("respond", server=respond_for_itself, client=train_and_respond),
    Step("teach", server=plugin.learn),
    Step("answer", server=plugin.renew),
    Step("learn", client=plugin.learn),
)


# -- parts of the steps


def _train_privately(party: Party, model: LanguageModel, outbox: Outbox) -> list[StepLog]:
    """A round's training on private questions, from round 2 on; the model goes into the outbox."""
    if party.round == 1:
        return []
    local = party.training("local")
    rate = local.learning_rate * local.decay ** (party.round - 1)
    steps = train_locally(party, model, local.model_copy(update={"learning_rate": rate}))
    outbox.private[MODEL_FILE], _ = model_payloads(model, party)
    return steps


def _learn(party: Party) -> tuple[LanguageModel, SharedTexts, Outbox]:
    """Choose sources, train, be measured: the same on both sides."""
    options, model, texts = _options(party), party.open_model(), shared_texts(party)
    shared = SharedTexts(party, model, texts, options, party.latest_json(ALIGNMENTS))
    kept = party.latest_tensors(OWN_KNOWLEDGE) or {}
    arrays = {name: tensor.numpy() for name, tensor in kept.items()}
    sources = {party.name: shared.received(party.name, arrays, Origin(party.name, "?", OWN_KNOWLEDGE))}
    sources |= {partner: _received(party, shared, partner, texts) for partner in party.partners}
    own, *others = (one.ce.astype(np.float64) for one in sources.values())
    weights = source_weights(own, np.stack(others, axis=1), options.selection)
    examples = shared.targets(sources, weights)
    loss = SoftLoss(hard_weight=options.hard_weight, restricted=options.mode == "letter")
    metrics = source_metrics(sources, weights) | _train(party, model, examples, loss)
    outbox = Outbox()
    publish_model(party, model, outbox)
    outbox.private[ALIGNMENTS] = json_payload(shared.aligner.state(), "state")
    add_evaluation(outbox, measure(party, model, "after the round"), metrics)
    return model, shared, outbox


def _train(party: Party, model: LanguageModel, examples: list[Example], loss: SoftLoss) -> dict[str, float]:
    options = party.training(party.role)
    rate = options.learning_rate * options.decay ** (party.round - 1)
    logs = train(party, model, examples, options, loss, name="transfer", learning_rate=rate)
    return transfer_metrics(examples, logs)


def _received(party: Party, shared: SharedTexts, partner: str, texts: Mapping[str, str]) -> Knowledge:
    arrays, origin = party.inbox.latest_logits(partner, KNOWLEDGE, steps=("label", "share", "teach"))
    found = shared.received(partner, arrays, origin)
    wanted = coded(list(texts.values())) if _options(party).mode == "letter" else None
    if wanted is not None and not np.array_equal(arrays.get("letters", []), wanted):
        raise origin.error("labels", "its cross-entropies belong to other labels than the server's")
    return found


def shared_texts(party: Party) -> dict[str, str]:
    """Public id -> shared text, as the server settled them: a letter, or the LLM's labelled reasoning."""
    if party.role == "server":
        content = (party.latest(OWN_TEXTS) or b"").decode()
        records = parse_jsonl(Response, content, source=OWN_TEXTS)
    elif _options(party).mode == "seq":
        records = party.inbox.latest(SERVER, TEXTS, Response, steps=("label",))
    else:
        arrays, origin = party.inbox.latest_logits(SERVER, VOTES, steps=("label",))
        letters = decoded(arrays, len(party.public), origin)
        return {name: one for name, one in zip(party.public, letters, strict=True) if one is not None}
    found = by_id(records)
    return {name: found[name].text for name in party.public if name in found}


def _label_logs(party: Party, letters: Mapping[str, Letter], own: Mapping[str, Response]) -> Payload:
    """Labels beside the LLM's own letters, for the host's diagnostics: how many are right, how many agree."""
    source = _options(party).label_source
    logs = [
        SampleLog(
            id=name, partner="label", selected_by=source, chosen=one, rejected=_letter(party, own, name)
        )
        for name, one in letters.items()
    ]
    return records_payload(logs, "diagnostics")


def _letter(party: Party, texts: Mapping[str, Response], name: str) -> Letter | None:
    return extract_letter(texts[name].text, party.public[name].options) if name in texts else None


def _message(known: Knowledge, texts: Mapping[str, str], options: Config) -> Payload:
    """Knowledge as it is sent, in ``letter`` mode with the labels that its cross-entropies belong to."""
    arrays = {name: tensor.numpy() for name, tensor in known.tensors().items()}
    if options.mode == "letter":
        arrays["letters"] = coded(list(texts.values()))
    return _numbers(arrays)


def _numbers(arrays: Mapping[str, NDArray[np.generic]]) -> Payload:
    payload = tensors_payload({name: torch.from_numpy(one) for name, one in arrays.items()}, "logits")
    return Payload("logits", len(arrays["ce" if "ce" in arrays else "letters"]), payload.data)


def _texts_payload(texts: Mapping[str, str], kind: Literal["responses", "state"]) -> Payload:
    return records_payload([Response(id=name, text=text) for name, text in texts.items()], kind)


def _keep(known: Knowledge, outbox: Outbox) -> None:
    outbox.private[OWN_KNOWLEDGE] = tensors_payload(known.tensors(), "state")


def _options(party: Party) -> Config:
    assert isinstance(party.options, Config)
    return party.options
