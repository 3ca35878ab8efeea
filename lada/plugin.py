"""LaDa's two components as steps of any scheme: learned data allocation and reasoning distillation.

Paper, Section IV: a party's filter selects samples for each partner; on these it trains with (preferred = the
partner's text, non-preferred = its own), and what that does to the losses rewards the filter. Both directions
run the same code: Eq. 3 on a client, with the one partner ``server``; Eq. 4 on the server, with all clients
as partners and overlap weights. `methods/lada.py` is this and nothing else; other methods host it with
``plugin: lada`` and say there what of theirs it replaces (baselines, section 10).

Choice: selection is per round, not per batch, since a file exchange answers queries once a round; rewards are
per batch as in the paper, and ``select.refine`` re-scores batches with the texts at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, model_validator
from safetensors.torch import load as load_tensors

from lada.answering import IDS, OWN_TEXTS, TEXTS, answer
from lada.config import Fraction, Options, Rate, derive_seed
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
SELECTING, ANSWERING = ("prepare", "learn", "teach", "select"), ("respond", "renew", "answer")
"""Steps that send ids, and steps that send texts."""
Texts = Mapping[str, Response]
"""Sample id -> text."""


class LaDaOptions(AllocationOptions):
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
    def _one_selector(self) -> LaDaOptions:
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


class HostOptions(Options):
    """Of a method that can host LaDa: fields ``plugin`` and ``lada``; the method's docstring states both."""

    plugin: Literal["none", "lada"] = "none"
    lada: LaDaOptions = LaDaOptions()

    @property
    def hosts(self) -> bool:
        """Whether LaDa's selection and loss stand in for the method's own."""
        return self.plugin == "lada"

    def refuse_without_effect(self, *, kept: Collection[str] = ()) -> None:
        """For a host's validator: what was set must have an effect.

        Args:
            kept: options of the host that still hold beside the plug-in.

        Raises:
            ValueError: naming an option that is not at its default and does nothing.
        """
        own = {"plugin", "lada"}
        silent = {"lada"} if not self.hosts else set(type(self).model_fields) - own - set(kept)
        for name in sorted(silent & self.model_fields_set):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with plugin {self.plugin}")


def lada_options(party: Party) -> LaDaOptions:
    """LaDa's options, whether it is the method or a guest."""
    options = party.options
    if isinstance(options, HostOptions):
        return options.lada
    assert isinstance(options, LaDaOptions)
    return options


def alone(*steps: Step) -> tuple[Step, ...]:
    """Steps of a host when it hosts nobody."""
    return tuple(
        _when(step, lambda options, own=step.when: not options.hosts and own(options)) for step in steps
    )


def hosted(*steps: Step) -> tuple[Step, ...]:
    """Steps of a host when it hosts LaDa; conditions look at LaDa's options."""
    return tuple(
        _when(step, lambda options, own=step.when: options.hosts and own(options.lada)) for step in steps
    )


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
    """Answer what this party selected and what others asked of it; send each what it asked for."""
    return send_texts(party, selected(open_allocations(party)), asked(party))


def renew(party: Party) -> Outbox:
    """Answer what others asked for with what this party has learnt since the round began."""
    return send_texts(party, {}, asked(party))


def learn(party: Party) -> Outbox:
    """Learn from the texts of this round, then select for the next."""
    model, allocations = party.open_model(), open_allocations(party)
    theirs = {
        partner: by_id(party.inbox.latest(partner, TEXTS, Response, steps=ANSWERING))
        for partner in party.partners
    }
    outbox = learn_from(party, model, allocations, own_texts(party), theirs)
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


def own_texts(party: Party) -> dict[str, Response]:
    """What this party answered last."""
    content = party.latest(OWN_TEXTS)
    return by_id(parse_jsonl(Response, (content or b"").decode(), source=OWN_TEXTS))


def learn_from(
    party: Party,
    model: LanguageModel,
    allocations: Mapping[str, Allocation],
    own: Texts,
    theirs: Mapping[str, Texts],
) -> Outbox:
    """Train on the partners' texts against the own ones, reward, teach the filters, publish, measure.

    Args:
        allocations: partner -> the pair's allocation; its filter learns, `keep_allocations` is the caller's.
        theirs: partner -> its texts on what was selected for it.
    """
    options = lada_options(party)
    pairs = received_pairs(party, allocations, own, theirs)
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
    return outbox


def open_allocations(party: Party, ids: Sequence[str] | None = None) -> dict[str, Allocation]:
    """Partner -> the pair's allocation, as this party's last stage left it.

    Args:
        ids: of the samples to select from, in the order of feature rows; None: the public set.

    Choice: all of a party's allocations share one seed, so that the server's first clustering is one and the
    same for all its pairs (method, section 3.7); their filters differ by what they learn.
    """
    seed = derive_seed(party.config.seed, party.name, "allocation")
    candidates, options = list(party.public) if ids is None else ids, lada_options(party).allocation
    found = {}
    for partner in party.partners:
        found[partner] = Allocation(candidates, options, seed, partner)
        values = party.latest_json(_pair_file(partner))
        if values is not None:
            found[partner].load(party.latest_tensors(_filter_file(partner)) or {}, values)
    return found


def selected(allocations: Mapping[str, Allocation]) -> dict[str, list[str]]:
    """Partner -> ids selected for this round."""
    return {partner: one.selection.ids for partner, one in allocations.items() if one.selection is not None}


def received_pairs(
    party: Party, allocations: Mapping[str, Allocation], own: Texts, theirs: Mapping[str, Texts]
) -> list[TextPair]:
    """Pairs of what this party selected: the partner's text against its own."""
    for partner, texts in theirs.items():
        _note_confidence(allocations[partner], texts)
        if allocations[partner].options.select.mode == "oracle":
            count = _replayed_count(party, partner, party.round)
            allocations[partner].narrow(right_texts(party, texts), round=party.round, count=count)
    return text_pairs(selected(allocations), theirs, own)


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


def select_samples(
    party: Party,
    model: LanguageModel,
    allocations: Mapping[str, Allocation],
    outbox: Outbox,
    *,
    round: int,
    ask: bool = True,
) -> None:
    """Choose the samples of a round with the model as it is now; ``ask`` the partners for their texts."""
    ids = next(iter(allocations.values())).ids
    prompts = [party.prompt(party.question(name)) for name in ids]
    micro_tokens = 2 * party.training(party.role).micro_tokens  # a pass without gradients needs less memory
    options = lada_options(party).features
    with model.merged():
        features = prompt_features(model, prompts, options, micro_tokens=micro_tokens, resume=party.resume)
    for partner, allocation in allocations.items():
        chosen = allocation.choose(features, round=round, count=_replayed_count(party, partner, round))
        if ask:
            wanted = [SampleId(id=name) for name in chosen.ids]
            outbox.send(partner, IDS, records_payload(wanted, "ids"))
    keep_allocations(allocations, outbox)


def _replayed_count(party: Party, partner: str, round: int) -> int | None:
    ids = party.replayed(partner, round)
    return None if ids is None else len(ids)


def keep_allocations(allocations: Mapping[str, Allocation], outbox: Outbox) -> None:
    """Put the state of all pairs into an outbox."""
    for partner, allocation in allocations.items():
        tensors, values = allocation.state()
        outbox.private[_filter_file(partner)] = tensors_payload(tensors, "state")
        outbox.private[_pair_file(partner)] = json_payload(values, "state")


def _filter_file(partner: str) -> str:
    return f"state/filter_{partner.replace('-', '_')}.safetensors"


def _pair_file(partner: str) -> str:
    return f"state/pair_{partner.replace('-', '_')}.json"


def _when(step: Step, condition: Callable[[HostOptions], bool]) -> Step:
    return replace(step, when=condition)
