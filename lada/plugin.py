"""LaDa's two components as steps of any scheme: learned data allocation and reasoning distillation.

Paper, Section IV: a party's filter selects samples for each partner; on these it trains with (preferred = the
partner's text, non-preferred = its own), and what that does to the losses rewards the filter. Both directions
run the same code: Eq. 3 on a client, with the one partner ``server``; Eq. 4 on the server, with all clients
as partners and overlap weights. `STEPS` is the method itself; other methods host its parts with
``plugin: lada`` and say there what of theirs it replaces (baselines, section 10).

Choice: selection is per round, not per batch, since a file exchange answers queries once a round; rewards are
per batch as in the paper, and ``select.refine`` re-scores batches with the texts at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safetensors.torch import load as load_tensors

from lada.allocations import (
    Allocations,
    keep_allocations,
    open_allocations,
    replayed_count,
    select_samples,
    selected,
)
from lada.answering import IDS, OWN_TEXTS, TEXTS, answer
from lada.distillation import Learned, distil, reward_records, sample_logs
from lada.imitation import publish_model
from lada.inbox import by_id
from lada.language_model import LanguageModel
from lada.local import add_evaluation, measure, prepare_client, prepare_server
from lada.manifest import Outbox
from lada.method import Step
from lada.pairs import TextPair, make_examples, overlap_weights, right_texts, text_pairs
from lada.party import MODEL_FILE, Party, records_payload
from lada.plugin_options import lada_options
from lada.records import Response, SampleId, parse_jsonl
from lada.results import SAMPLES_FILE
from lada.selection.allocation import Allocation
from lada.training import NO_HOOKS, Hooks

REWARDS = "rewards.jsonl"
SELECTING, ANSWERING = ("prepare", "learn", "teach", "select"), ("respond", "renew", "answer")
"""Steps that send ids, and steps that send texts."""
Texts = Mapping[str, Response]
"""Sample id -> text."""


# -- steps


def prepare_client_and_select(party: Party) -> Outbox:
    """Local fine-tuning, then the first selection."""
    outbox = prepare_client(party)
    model = party.open_model()
    model.load_state(load_tensors(outbox.private[MODEL_FILE].data))
    select_samples(party, model, open_allocations(party), outbox, round=party.round + 1)
    return outbox


def prepare_server_and_select(party: Party) -> Outbox:
    """Measure the LLM, then the first selection for every client."""
    outbox = prepare_server(party)
    select_samples(party, party.open_model(), open_allocations(party), outbox, round=party.round + 1)
    return outbox


def respond(party: Party) -> Outbox:
    """Answer what this party selected itself and what others asked of it; send each what it asked for."""
    return send_texts(party, selected(open_allocations(party)), asked(party))


def renew(party: Party) -> Outbox:
    """Answer what others asked for with what this party has learnt since the round began."""
    return send_texts(party, {}, asked(party))


def learn(party: Party) -> Outbox:
    """Learn from the texts of this round, then select for the next."""
    model, allocations = party.open_model(), open_allocations(party)
    pairs = received_pairs(party, allocations, own_texts(party), their_texts(party))
    outbox = learn_from(party, model, allocations, pairs)
    if party.is_last_round:
        keep_allocations(allocations, outbox)
    else:
        select_samples(party, model, allocations, outbox, round=party.round + 1)
    return outbox


STEPS = (
    Step("prepare", server=prepare_server_and_select, client=prepare_client_and_select, once=True),
    Step("respond", server=respond, client=respond),
    Step("learn", server=learn, client=learn, when=lambda options: options.schedule == "parallel"),
    Step("learn", client=learn, when=lambda options: options.schedule == "server_last"),
    Step("renew", client=renew, when=lambda options: options.schedule == "server_last"),
    Step("teach", server=learn, when=lambda options: options.schedule == "server_last"),
)


# -- parts of the steps


def asked(party: Party) -> dict[str, list[str]]:
    """Partner -> ids whose texts it asked this party for."""
    return {
        partner: [record.id for record in party.inbox.latest(partner, IDS, SampleId, steps=SELECTING)]
        for partner in party.partners
    }


def send_texts(
    party: Party,
    mine: Mapping[str, Sequence[str]],
    wanted: Mapping[str, Sequence[str]],
    model: LanguageModel | None = None,
) -> Outbox:
    """Answer with the party's model, keep the texts, and send each partner what it wanted.

    Args:
        mine: partner -> ids that this party selected itself.
        wanted: partner -> ids to answer for it.
        model: in place of the committed one.
    """
    texts, outbox = answer(party, sorted(set().union(*mine.values(), *wanted.values())), model=model)
    for partner, ids in wanted.items():
        sent = [texts[name] for name in sorted(ids) if name in texts]
        outbox.send(partner, TEXTS, records_payload(sent, "responses"))
    return outbox


def own_texts(party: Party) -> Texts:
    """What this party answered last."""
    content = party.latest(OWN_TEXTS)
    return by_id(parse_jsonl(Response, (content or b"").decode(), source=OWN_TEXTS))


def their_texts(party: Party) -> dict[str, Texts]:
    """Partner -> its newest texts."""
    return {
        partner: by_id(party.inbox.latest(partner, TEXTS, Response, steps=ANSWERING))
        for partner in party.partners
    }


def received_pairs(
    party: Party, allocations: Allocations, own: Texts, theirs: Mapping[str, Texts]
) -> list[TextPair]:
    """Pairs of what this party selected: the partner's text against its own.

    Args:
        allocations: mode ``oracle`` narrows their selections, now that the texts are known.
        theirs: partner -> its texts on what was selected for it.
    """
    for partner, texts in theirs.items():
        _note_confidence(allocations[partner], texts)
        if allocations[partner].options.select.mode == "oracle":
            count = replayed_count(party, partner, party.round)
            allocations[partner].narrow(right_texts(party, texts), round=party.round, count=count)
    return text_pairs(selected(allocations), theirs, own)


def useful_pairs(party: Party, pairs: Sequence[TextPair]) -> list[TextPair]:
    """Pairs to train on: without ties where these are dropped."""
    return [pair for pair in pairs if not (lada_options(party).drop_ties and pair.same)]


def learn_from(
    party: Party,
    model: LanguageModel,
    allocations: Allocations,
    pairs: Sequence[TextPair],
    hooks: Hooks = NO_HOOKS,
) -> Outbox:
    """Train on pairs of texts, reward, teach the filters, publish, be measured.

    Args:
        allocations: their filters learn; `keep_allocations` is the caller's.
        hooks: of a host, around optimiser steps, before LaDa's own.
    """
    options, useful = lada_options(party), useful_pairs(party, pairs)
    rewards = {(pair.id, pair.partner): allocations[pair.partner].weight(pair.id) for pair in pairs}
    weights = overlap_weights(
        useful, options.server_weights, rewards=rewards, temperature=options.softmax_temperature
    )
    examples = make_examples(party, model, useful, weights)
    learned = distil(
        party, model, examples, allocations, options.loss, entry_pass=options.entry_pass, hooks=hooks
    )
    outbox = Outbox()
    _publish_learning(party, model, learned, outbox)
    logs = sample_logs(party, allocations, pairs, learned)
    outbox.private[SAMPLES_FILE] = records_payload(logs, "diagnostics")
    learned.metrics["ties"] = float(len(pairs) - len(useful))
    add_evaluation(outbox, measure(party, model, "after the round"), learned.metrics)
    return outbox


def _note_confidence(allocation: Allocation, texts: Texts) -> None:
    allocation.confidence |= {
        name: text.confidence for name, text in texts.items() if text.confidence is not None
    }


def _publish_learning(party: Party, model: LanguageModel, learned: Learned, outbox: Outbox) -> None:
    """Adapter and rewards: a client's go to the server, the server's to all (architecture, section 3)."""
    publish_model(party, model, outbox)
    if party.config.exchange.publish_rewards:
        rewards = records_payload(reward_records(learned), "rewards")
        outbox.send("server" if party.role == "client" else "all", REWARDS, rewards)
