"""What a party selects of each partner: its allocations opened, asked and kept from stage to stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lada.answering import IDS
from lada.config import derive_seed
from lada.language_model import LanguageModel
from lada.manifest import Outbox
from lada.party import Party, json_payload, records_payload, tensors_payload
from lada.plugin_options import lada_options
from lada.records import SampleId
from lada.selection.allocation import Allocation
from lada.selection.features import prompt_features

Allocations = Mapping[str, Allocation]
"""Partner -> the pair's allocation."""


def open_allocations(party: Party, ids: Sequence[str] | None = None) -> Allocations:
    """The party's allocations as its last stage left them.

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


def select_samples(
    party: Party,
    model: LanguageModel,
    allocations: Allocations,
    outbox: Outbox,
    *,
    round: int,
    ask: bool = True,
) -> None:
    """Choose the samples of a round with the model as it is now, and keep the allocations.

    Where there is nothing to select from, nothing is selected.

    Args:
        ask: partners for their texts on what is selected.
    """
    ids = next(iter(allocations.values())).ids
    micro_tokens = 2 * party.training(party.role).micro_tokens  # a pass without gradients needs less memory
    options = lada_options(party).features
    if ids:
        prompts = [party.prompt(party.question(name)) for name in ids]
        with model.merged():
            features = prompt_features(
                model, prompts, options, micro_tokens=micro_tokens, resume=party.resume
            )
        for partner, allocation in allocations.items():
            allocation.choose(features, round=round, count=replayed_count(party, partner, round))
    if ask:
        for partner, chosen in selected(allocations).items():
            wanted = [SampleId(id=name) for name in chosen]
            outbox.send(partner, IDS, records_payload(wanted, "ids"))
    keep_allocations(allocations, outbox)


def selected(allocations: Allocations) -> dict[str, list[str]]:
    """Partner -> ids selected for this round."""
    return {
        partner: [] if one.selection is None else one.selection.ids for partner, one in allocations.items()
    }


def replayed_count(party: Party, partner: str, round: int) -> int | None:
    """How many ids the run that this one replays had of a partner in a round; None: it replays none."""
    ids = party.replayed(partner, round)
    return None if ids is None else len(ids)


def keep_allocations(allocations: Allocations, outbox: Outbox) -> None:
    """Put the state of all pairs into an outbox."""
    for partner, allocation in allocations.items():
        tensors, values = allocation.state()
        outbox.private[_filter_file(partner)] = tensors_payload(tensors, "state")
        outbox.private[_pair_file(partner)] = json_payload(values, "state")


def _filter_file(partner: str) -> str:
    return f"state/filter_{partner.replace('-', '_')}.safetensors"


def _pair_file(partner: str) -> str:
    return f"state/pair_{partner.replace('-', '_')}.json"
