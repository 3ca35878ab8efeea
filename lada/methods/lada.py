"""LaDa: bidirectional reasoning distillation on samples that a learned filter allocates (paper, Section IV).

Round 0, ``prepare``: local fine-tuning makes each client's reference policy; prototypes select for round 1.
Every round, ``respond``: each party answers what it selected itself and what others asked of it. ``learn``:
it trains on (preferred = the partner's text, non-preferred = its own), rewards the selection, teaches the
filters, is measured, and selects for the next round. Both directions run the same code: Eq. 3 on a client,
with the one partner ``server``; Eq. 4 on the server, with all clients as partners and overlap weights.

Choice: selection is per round, not per batch, since a file exchange answers queries once a round; rewards are
per batch as in the paper, and ``select.refine`` re-scores batches with the texts at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from safetensors.torch import load as load_tensors

from lada.answering import IDS, OWN_TEXTS, TEXTS, answer
from lada.config import Fraction, Rate, derive_seed
from lada.distillation import Learned, distil, reward_records, sample_logs
from lada.exchange import Outbox
from lada.inbox import by_id
from lada.local import add_evaluation, measure, prepare_client, prepare_server
from lada.losses import PairLoss
from lada.method import Step
from lada.models import LanguageModel
from lada.pairs import TextPair, Weighting, make_examples, overlap_weights, right_texts, text_pairs
from lada.party import MODEL_FILE, Party, json_payload, model_payloads, records_payload, tensors_payload
from lada.records import Response, SampleId, parse_jsonl
from lada.results import SAMPLES_FILE
from lada.selection.allocation import Allocation, AllocationOptions
from lada.selection.features import prompt_features

REWARDS = "rewards.jsonl"
SELECTING, ANSWERING = ("prepare", "learn", "teach"), ("respond", "renew")
"""Steps that send ids, and steps that send texts."""


class Config(AllocationOptions):
    """LaDa's options.

    Attributes:
        reasoning_distillation: False is the ablation: cross-entropy on the preferred text, no contrast.
        use_filter: False is the ablation "w/o filter": all public samples in both directions.
        server_weights: w of Eq. 4 on samples that several clients' pairs share. ``reward`` weighs by the
            predicted reward of each pair's filter (round 1 has none: uniform); ``none`` is the ablation
            "w/o sample weights": every pair counts in full.
        softmax_temperature: of ``server_weights: softmax``.
        beta: strength of the tie to the reference in Eq. 3.
        preference_weight: multiplies the preference term.
        nll_weight: adds this much cross-entropy on the preferred text (an addition to the paper).
        length_norm: log-probabilities per token instead of sums.
        label_smoothing: share of pairs assumed to be labelled the wrong way round.
        drop_ties: leave out pairs whose two texts are equal (their gradient is 0).
        entry_pass: measure the losses before the round's first step by a pass of their own; False takes
            each sample's first training loss instead.
        schedule: ``server_last`` lets the server learn after the clients, from fresh client texts.
    """

    reasoning_distillation: bool = True
    use_filter: bool = True
    server_weights: Weighting = "reward"
    softmax_temperature: Annotated[float, Field(gt=0)] = 0.1
    beta: Annotated[float, Field(gt=0)] = 0.1
    preference_weight: Rate = 1.0
    nll_weight: Rate = 0.0
    length_norm: bool = False
    label_smoothing: Fraction = 0.0
    drop_ties: bool = True
    entry_pass: bool = True
    schedule: Literal["parallel", "server_last"] = "parallel"

    @model_validator(mode="after")
    def _one_selector(self) -> Config:
        if not self.use_filter and self.select.mode != "filter":
            raise ValueError(f"use_filter false selects all samples, select.mode {self.select.mode} does not")
        return self

    @property
    def loss(self) -> PairLoss:
        """The loss that both sides train with."""
        return PairLoss(
            kind="preference" if self.reasoning_distillation else "cross_entropy",
            beta=self.beta,
            preference_weight=self.preference_weight,
            nll_weight=self.nll_weight,
            length_norm=self.length_norm,
            label_smoothing=self.label_smoothing,
        )

    @property
    def allocation(self) -> AllocationOptions:
        """The allocation's part of the options; "w/o filter" selects everything."""
        names = AllocationOptions.model_fields
        options = AllocationOptions(**{name: getattr(self, name) for name in names})
        if self.use_filter:
            return options
        return options.model_copy(update={"select": self.select.model_copy(update={"mode": "all"})})


# -- steps


def prepare_client_and_select(party: Party) -> Outbox:
    """Local fine-tuning, then the first selection."""
    outbox = prepare_client(party)
    model = party.open_model()
    model.load_state(load_tensors(outbox.private[MODEL_FILE].data))
    _select(party, model, open_allocations(party), outbox)
    return outbox


def prepare_server_and_select(party: Party) -> Outbox:
    """Measure the LLM, then the first selection for every client."""
    outbox = prepare_server(party)
    _select(party, party.open_model(), open_allocations(party), outbox)
    return outbox


def respond(party: Party) -> Outbox:
    """Answer what this party selected and what others asked of it; send each what it asked for."""
    return _respond(party, selected(open_allocations(party)))


def renew(party: Party) -> Outbox:
    """Answer what others asked for once more, with what this party has learnt since (``server_last``)."""
    return _respond(party, {})


def _respond(party: Party, mine: Mapping[str, Sequence[str]]) -> Outbox:
    asked = {
        partner: [record.id for record in party.inbox.latest(partner, IDS, SampleId, steps=SELECTING)]
        for partner in party.partners
    }
    wanted = sorted(set().union(*mine.values(), *asked.values()))
    texts, outbox = answer(party, wanted)
    for partner, ids in asked.items():
        sent = [texts[name] for name in sorted(ids) if name in texts]
        outbox.send(partner, TEXTS, records_payload(sent, "responses"))
    return outbox


def learn(party: Party) -> Outbox:
    """Train on the partners' texts against the own ones, reward, teach the filters, measure, select."""
    options = party.options
    assert isinstance(options, Config)
    model, allocations = party.open_model(), open_allocations(party)
    pairs = received_pairs(party, allocations)
    rewards = {(pair.id, pair.partner): allocations[pair.partner].weight(pair.id) for pair in pairs}
    useful = [pair for pair in pairs if not (options.drop_ties and pair.same)]
    weights = overlap_weights(
        useful, options.server_weights, rewards=rewards, temperature=options.softmax_temperature
    )
    examples = make_examples(party, model, useful, weights)
    learned = distil(party, model, examples, allocations, options.loss, entry_pass=options.entry_pass)
    outbox = Outbox()
    _publish_learning(party, model, learned, outbox)
    logs = sample_logs(party, allocations, pairs, learned)
    outbox.private[SAMPLES_FILE] = records_payload(logs, "diagnostics")
    learned.metrics["ties"] = float(len(pairs) - len(useful))
    add_evaluation(outbox, measure(party, model, "after the round"), learned.metrics)
    if party.is_last_round:
        _save(allocations, outbox)
    else:
        _select(party, model, allocations, outbox)
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


def open_allocations(party: Party) -> dict[str, Allocation]:
    """Partner -> the pair's allocation, as this party's last stage left it.

    Choice: all of a party's allocations share one seed, so that the server's first clustering is one and the
    same for all its pairs (method, section 3.7); their filters differ by what they learn.
    """
    assert isinstance(party.options, Config)
    seed = derive_seed(party.config.seed, party.name, "allocation")
    found = {}
    for partner in party.partners:
        found[partner] = Allocation(list(party.public), party.options.allocation, seed, partner)
        values = party.latest_json(_pair_file(partner))
        if values is not None:
            found[partner].load(party.latest_tensors(_filter_file(partner)) or {}, values)
    return found


def selected(allocations: Mapping[str, Allocation]) -> dict[str, list[str]]:
    """Partner -> ids selected for this round."""
    return {partner: one.selection.ids for partner, one in allocations.items() if one.selection is not None}


def received_pairs(party: Party, allocations: Mapping[str, Allocation]) -> list[TextPair]:
    """Pairs of what this party selected: the partner's text from the inbox against its own."""
    content = party.latest(OWN_TEXTS)
    own = parse_jsonl(Response, (content or b"").decode(), source=OWN_TEXTS)
    theirs = {
        partner: by_id(party.inbox.latest(partner, TEXTS, Response, steps=ANSWERING))
        for partner in party.partners
    }
    for partner, texts in theirs.items():
        _note_confidence(allocations[partner], texts)
        if allocations[partner].options.select.mode == "oracle":
            count = _replayed_count(party, partner, party.round)
            allocations[partner].narrow(right_texts(party, texts), round=party.round, count=count)
    return text_pairs(selected(allocations), theirs, by_id(own))


def _note_confidence(allocation: Allocation, texts: Mapping[str, Response]) -> None:
    allocation.confidence |= {
        name: text.confidence for name, text in texts.items() if text.confidence is not None
    }


def _publish_learning(party: Party, model: LanguageModel, learned: Learned, outbox: Outbox) -> None:
    """Rewards and adapter: a client's go to the server, the server's to all (architecture, section 3)."""
    outbox.private[MODEL_FILE], published = model_payloads(model, party)
    if party.config.exchange.publish_rewards:
        published[REWARDS] = records_payload(reward_records(learned), "rewards")
    for name, payload in published.items():
        outbox.send("server" if party.role == "client" else "all", name, payload)


def _select(party: Party, model: LanguageModel, allocations: dict[str, Allocation], outbox: Outbox) -> None:
    """Choose the next round's samples with the model as it is now and ask the partners for their texts."""
    assert isinstance(party.options, Config)
    ids = list(party.public)
    prompts = [party.prompt(party.public[name]) for name in ids]
    micro_tokens = 2 * party.training(party.role).micro_tokens  # a pass without gradients needs less memory
    with model.merged():
        features = prompt_features(
            model, prompts, party.options.features, micro_tokens=micro_tokens, resume=party.resume
        )
    for partner, allocation in allocations.items():
        count = _replayed_count(party, partner, party.round + 1)
        chosen = allocation.choose(features, round=party.round + 1, count=count)
        asked = [SampleId(id=name) for name in chosen.ids]
        outbox.send(partner, IDS, records_payload(asked, "ids"))
    _save(allocations, outbox)


def _replayed_count(party: Party, partner: str, round: int) -> int | None:
    ids = party.replayed(partner, round)
    return None if ids is None else len(ids)


def _save(allocations: Mapping[str, Allocation], outbox: Outbox) -> None:
    for partner, allocation in allocations.items():
        tensors, values = allocation.state()
        outbox.private[_filter_file(partner)] = tensors_payload(tensors, "state")
        outbox.private[_pair_file(partner)] = json_payload(values, "state")


def _filter_file(partner: str) -> str:
    return f"state/filter_{partner.replace('-', '_')}.safetensors"


def _pair_file(partner: str) -> str:
    return f"state/pair_{partner.replace('-', '_')}.json"
