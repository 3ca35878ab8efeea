"""The lab task: procedural multiple-choice reasoning in two datasets, ``lab-math`` and ``lab-cot``.

Each has six general domains and, per model of Table I, one domain of facts that only this model was taught
(`lada.data.lab_facts`). A federation gives every client another mix of the general domains, the server's
facts and its own model's facts.

Evaluation and pre-training never share a question: a stem belongs to one of them by its own hash
(`is_held_out`), so no list of used questions is needed and any seed is safe.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from functools import cache

from lada.data import Federation, Request, lab_cot, lab_facts, lab_math
from lada.data.lab_words import Draft, stream
from lada.errors import DataError
from lada.records import LETTERS, Item

DATASETS = ("lab-math", "lab-cot")
GENERAL = {"lab-math": tuple(lab_math.DOMAINS), "lab-cot": tuple(lab_cot.DOMAINS)}
SIZES = (0.35, 0.4, 0.25)
"""Share of problems of size 1, 2 and 3 (about: number of steps)."""
CLIENT_FACTS = SERVER_FACTS = 0.18
"""Share of a client's own facts, and of the server's facts, in its data (Choice: 15-20 %)."""
PUBLIC_SERVER, PUBLIC_CLIENTS = 0.18, 0.27
"""Share of the server's facts and of all clients' facts together in the public questions."""
FAVOURED = 3.0
"""Weight of the two general domains that a client sees most; the other four weigh 1."""

Maker = Callable[[random.Random, int], Draft]
_TRIES = 2000
_DEMO = {"lab-math": "gaps", "lab-cot": "days"}


def makers(dataset: str) -> dict[str, Maker]:
    """Domain -> maker of its problems, general domains first.

    Raises:
        DataError: when ``dataset`` is none of `DATASETS`.
    """
    if dataset not in DATASETS:
        raise DataError(f"there is no lab dataset '{dataset}'; legal: {', '.join(DATASETS)}")
    general, facts = (
        (lab_math.DOMAINS, lab_facts.math_facts)
        if dataset == "lab-math"
        else (lab_cot.DOMAINS, lab_facts.cot_facts)
    )
    return {**general, **{lab_facts.domain(model): facts(model) for model in lab_facts.MODELS.values()}}


def group_of(stem: str) -> str:
    """Hash of a question's stem; equal stems are equal groups."""
    return hashlib.sha256(stem.encode()).hexdigest()[:16]


def is_held_out(group: str) -> bool:
    """Whether a stem is for evaluation (one in three) or for pre-training."""
    return int(group, 16) % 3 == 0


def generate(
    dataset: str,
    weights: Mapping[str, float],
    count: int,
    seed: int | str,
    *,
    taken: set[str] | None = None,
    held_out: bool = True,
) -> list[Item]:
    """Items with rationales; domains by largest remainder, letters balanced, order shuffled.

    Args:
        dataset: one of `DATASETS`.
        weights: domain -> weight, in any unit.
        count: number of items.
        seed: decides everything together with the other arguments.
        taken: groups that must not occur; those of the new items are added.
        held_out: questions for evaluation; False gives questions for pre-training.

    Raises:
        DataError: for an unknown dataset or domain, or when a domain has no unused question left.
    """
    legal = makers(dataset)
    for name in weights.keys() - legal.keys():
        raise DataError(f"{dataset} has no domain '{name}'; legal: {', '.join(legal)}")
    rng = stream("lab", dataset, seed, count, held_out)
    used = set() if taken is None else taken
    domains = [name for name, share in apportion(weights, count).items() for _ in range(share)]
    letters = [place % 4 for place in range(count)]
    rng.shuffle(domains)
    rng.shuffle(letters)
    return [
        _item(rng, dataset, name, legal[name], place, used, held_out)
        for name, place in zip(domains, letters, strict=True)
    ]


def federation(request: Request) -> Federation:
    """The data of one run: every client its own mix, all clients' facts and the server's among the public.

    Client k favours the general domains 2k and 2k+1 (counted round). See `generate` for seeds and letters.

    Raises:
        DataError: when the dataset or a model is unknown or a domain runs out of questions.
    """
    example, taken = demo(request.dataset), set[str]()
    train: dict[str, list[Item]] = {}
    test: dict[str, list[Item]] = {}
    for position, (client, model) in enumerate(request.clients.items()):
        weights = client_weights(request.dataset, position, model, request.server)
        for parts, part, count in ((test, "test", request.num_test), (train, "train", request.num_train)):
            key = f"{request.seed}/{part}/{position}"
            parts[client] = generate(request.dataset, weights, count, key, taken=taken)
        train[client] = [item.without_rationale() for item in train[client]]
    weights = public_weights(request.dataset, request.server, list(request.clients.values()))
    public = generate(request.dataset, weights, request.num_public, f"{request.seed}/public", taken=taken)
    return Federation(train, test, public, example, notes={"generator": "lab", "held_out_share": 1 / 3})


def client_weights(dataset: str, position: int, model: str, server: str) -> dict[str, float]:
    """Domain weights of a client's private data; they sum to 1."""
    general = GENERAL[dataset]
    first = 2 * position + position // 3
    favoured = {general[first % len(general)], general[(first + 1) % len(general)]}
    raw = {name: FAVOURED if name in favoured else 1.0 for name in general}
    rest = 1 - CLIENT_FACTS - SERVER_FACTS
    weights = {name: rest * weight / sum(raw.values()) for name, weight in raw.items()}
    for owner, share in ((model, CLIENT_FACTS), (server, SERVER_FACTS)):
        weights[lab_facts.domain(owner)] = weights.get(lab_facts.domain(owner), 0.0) + share
    return weights


def public_weights(dataset: str, server: str, clients: list[str]) -> dict[str, float]:
    """Domain weights of the public questions; they sum to 1."""
    general = GENERAL[dataset]
    rest = 1 - PUBLIC_SERVER - PUBLIC_CLIENTS
    weights = {name: rest / len(general) for name in general}
    for owner, share in (
        (server, PUBLIC_SERVER),
        *((model, PUBLIC_CLIENTS / len(clients)) for model in clients),
    ):
        weights[lab_facts.domain(owner)] = weights.get(lab_facts.domain(owner), 0.0) + share
    return weights


@cache
def demo(dataset: str) -> Item:
    """The one-shot example: fixed, solved, from the pre-training half of the stems, so in no split."""
    makers(dataset)
    return generate(dataset, {_DEMO[dataset]: 1.0}, 1, "demo", held_out=False)[0]


def apportion(weights: Mapping[str, float], count: int) -> dict[str, int]:
    """Whole numbers in proportion to the weights, by largest remainder; they sum to ``count``."""
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    shares = {name: int(number) for name, number in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: count - sum(shares.values())]:
        shares[name] += 1
    return shares


def _item(
    rng: random.Random, dataset: str, name: str, make: Maker, place: int, used: set[str], held_out: bool
) -> Item:
    for _ in range(_TRIES):
        draft = make(rng, rng.choices((1, 2, 3), SIZES)[0])
        group = group_of(draft.stem)
        if is_held_out(group) == held_out and group not in used:
            used.add(group)
            return _with_options(draft, f"{dataset}-{group}", name, group, place)
    raise DataError(f"{dataset}: domain '{name}' has no unused question left; ask for fewer items")


def _with_options(draft: Draft, identity: str, name: str, group: str, place: int) -> Item:
    options = [*draft.wrong[:place], draft.value, *draft.wrong[place:]]
    rationale = ". ".join(f"{ask} = {result}" for ask, result in draft.steps)
    return Item(
        id=identity,
        question=draft.stem,
        options=tuple(options),
        answer=LETTERS[place],
        rationale=f"{rationale} {LETTERS[place]}.",
        domain=name,
        group=group,
    )
