"""WASP: synthetic questions by the LLM, steered by private votes (baselines, section 5, after its QA branch).

The server writes questions with solutions; every client lets its private questions vote for those that lie
near and those that lie far; the server shows tops of both as good and bad examples and writes more. Clients
learn all questions with self-boosted weights, the server those with the most votes. Of a client's data
nothing leaves but histograms.

Round 0 makes the questions of the first T steps (``write_0``, ``vote_1``, ``write_1``, …); every round votes,
writes one step's questions and learns. So round 1 trains on T + 1 steps' questions, as many as the public set
has, after T votes, and each later round on one step's more until ``max_size``.

Choice: the original's weights of several writers are left out (there is one). Adapters are published as other
methods do, but never beside votes with noise: the guarantee would say nothing then.

With ``plugin: lada`` the synthetic questions are LaDa's distillation set. Of WASP's own stay the writing, the
votes that steer it, and the boosted weights of a client's samples, which multiply LaDa's loss. LaDa's filters
choose among all questions so far, in place of "all" on clients and the top-voted on the server, and its loss
replaces the cross-entropy. The server's text on a question is the solution that it was published with. So a
client asks for nothing (section 10's 4 * rho * n up is 0), and nothing goes down but new questions and the
ids that the server asks for; up go votes and texts on these.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from safetensors.numpy import save

from lada import plugin
from lada.allocations import Allocations, keep_allocations, open_allocations, select_samples, selected
from lada.answering import TEXTS, answer
from lada.boosting import even_weights, learn_boosted, solved_example
from lada.config import SERVER, Fraction, Positive
from lada.embedding import Embed, hidden_embedder, question_text, tfidf_embedder
from lada.imitation import imitate, publish_model, text_examples
from lada.inbox import by_id
from lada.language_model import LanguageModel
from lada.loading import load_model
from lada.local import add_evaluation, add_metrics, measure, prepare_client, prepare_server
from lada.manifest import Outbox, Payload
from lada.method import Step
from lada.party import Party, json_payload, records_payload
from lada.plugin_options import HostOptions, alone, hosted
from lada.prompts import solution
from lada.records import Item, Question, Response, read_jsonl
from lada.results import METRICS_FILE
from lada.runs import model_folder
from lada.synthetic import QUESTIONS, VOTES, Synthetic, synthetic_id
from lada.training import Example, Hooks
from lada.voting import (
    Histogram,
    contrast,
    cosine_distances,
    histograms,
    noise_sigma,
    top_share,
    votes_of_one,
)
from lada.writing import FORMS, Examples, Writer

MOST_STEPS = 16
VOTING = ("vote", *(f"vote_{step}" for step in range(1, MOST_STEPS)))
WRITING = ("write", *(f"write_{step}" for step in range(MOST_STEPS)))


class Config(HostOptions):
    """WASP's options.

    Attributes:
        steps: T, how often clients vote before anyone learns.
        per_step: questions that a step asks for; None: a (T + 1)-th of the public set's size.
        max_size: no more are written when there are so many; None: twice the public set's size.
        first_examples: what the first step's requests show: the ``demo``, or ``public`` questions (an
            addition: lab models write what resembles what they are shown, and nothing else).
        examples: S: a request shows S/2 bad and S/2 good ones, drawn from the S on top of each histogram.
        depth: Q: a private question votes for so many near and so many far questions.
        asks: how often a place is asked for before it stays empty.
        temperature: of the decoding of new questions.
        top_p: share of the probability that they are sampled from.
        max_new_tokens: longest question with its solution.
        duplicate: a question whose cosine to another is above this is dropped.
        embedder: ``tfidf`` of words, or ``hidden`` states of ``embedder_model``, which nobody trains.
        embedder_model: a model that every party has.
        boosting: weigh samples by what the client's model makes of them after each epoch; else all alike.
        server_update: ``sft_top_voted`` trains the LLM on the questions with the most votes; ``none`` is the
            original; ``sft_on_slm`` on the clients' texts, as FedKD does.
        top_share: of all questions that count as top-voted.
        noise: on the votes: ``off``, ``secret`` (no run gives it again) or ``reproducible`` (drawn from the
            run's seed, which the server knows: to measure what noise costs, not to protect).
        epsilon: of the guarantee that noise gives each private question over all votes of the run.
        delta: likewise, the probability that it does not hold.
        secure_sum: reckon with all clients' noise together: true only where nobody sees the votes of one
            client alone; this exchange shows them to the server.
        plugin: ``lada`` puts LaDa's selection and loss in place of ``server_update`` and ``top_share``.
        lada: options of LaDa as ``METHOD=lada`` takes them, with ``plugin=lada`` alone.
    """

    KEPT: ClassVar = (
        *("steps", "per_step", "max_size", "first_examples", "examples", "depth", "asks", "temperature"),
        *("top_p", "max_new_tokens", "duplicate", "embedder", "embedder_model", "boosting", "noise"),
    )
    IDLE: ClassVar = ("schedule",)

    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 4
    per_step: Positive | None = None
    max_size: Positive | None = None
    first_examples: Literal["demo", "public"] = "demo"
    examples: Annotated[int, Field(ge=2)] = 8
    depth: Positive = 8
    asks: Positive = 3
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_new_tokens: Positive = 384
    duplicate: Fraction = 0.95
    embedder: Literal["tfidf", "hidden"] = "tfidf"
    embedder_model: str = "Qwen/Qwen3-0.6B"
    boosting: bool = True
    server_update: Literal["sft_top_voted", "none", "sft_on_slm"] = "sft_top_voted"
    top_share: Fraction = 0.5
    noise: Literal["off", "secret", "reproducible"] = "off"
    epsilon: Annotated[float, Field(gt=0)] = 4.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    secure_sum: bool = False

    @model_validator(mode="after")
    def _texts_have_no_noise(self) -> Config:
        if self.noise != "off" and (self.server_update == "sft_on_slm" or self.hosts):
            which = "plugin lada" if self.hosts else "server_update sft_on_slm"
            raise ValueError(f"noise protects votes alone; with {which} texts leave a client")
        return self

    @model_validator(mode="after")
    def _nobody_sealed_answers(self) -> Config:
        select = self.guest.select if self.hosts else None
        if select is not None and (select.mode == "oracle" or select.replay is not None):
            raise ValueError(
                "lada.select: modes oracle and replay are of the public set; this run's questions are its own"
            )
        return self


# -- steps


def write(party: Party) -> Outbox:
    """Ask the LLM for a step's questions and publish those that pass."""
    options, known = options_of(party), synthetic(party)
    most = 2 * len(party.public) if options.max_size is None else options.max_size
    per_step = options.per_step or max(1, len(party.public) // (options.steps + 1))
    first = first_examples(party)
    items, counts = writer(party).write(
        max(0, min(per_step, most - len(known))),
        examples(party, known, first),
        known=[*first, *(question.item() for question in known)],
        letters=[question.answer for question in known],
        seed=party.seed("questions"),
    )
    written = [
        Synthetic(
            id=synthetic_id(place),
            question=item.question,
            options=item.options,
            rationale=item.rationale or "",
            answer=item.answer,
        )
        for place, item in enumerate(items, start=len(known))
    ]
    outbox = Outbox()
    outbox.send("all", QUESTIONS, records_payload(written, "questions"))
    step = party.stage.step
    metrics = {f"questions_{reason}/{step}": float(count) for reason, count in counts.items()}
    metrics[f"questions/{step}"] = float(len(known) + len(written))
    outbox.private[METRICS_FILE] = json_payload(metrics, "metrics")
    return outbox


def vote(party: Party) -> Outbox:
    """Let the private questions vote on all synthetic ones; only the two histograms are sent."""
    options, embed = options_of(party), embedder(party)
    own = embed([question_text(item) for item in party.train_items])
    others = embed([question_text(question.item()) for question in synthetic(party)])
    pair = histograms(cosine_distances(own, others), options.depth)
    outbox = Outbox()
    if options.noise != "off":
        sigma = vote_sigma(party)
        secret = options.noise == "secret"
        draw = np.random.default_rng(secrets.randbits(128) if secret else party.seed("noise"))
        pair = (pair[0] + draw.normal(0, sigma, len(others)), pair[1] + draw.normal(0, sigma, len(others)))
        metrics = {f"vote_sigma/{party.stage.step}": sigma}
        outbox.private[METRICS_FILE] = json_payload(metrics, "metrics")
    near, far = (side.astype(np.float32) for side in pair)
    outbox.send(SERVER, VOTES, Payload("votes", len(near), save({"near": near, "far": far})))
    return outbox


def respond(party: Party) -> Outbox:
    """Answer all synthetic questions with the model as it stands (``server_update: sft_on_slm``)."""
    texts, outbox = answer(party, [question.id for question in synthetic(party)])
    outbox.send(SERVER, TEXTS, records_payload(list(texts.values()), "responses"))
    return outbox


def learn_client(party: Party) -> Outbox:
    """Learn all synthetic questions, each with its weight, and be measured."""
    model, items = party.open_model(), [question.item() for question in synthetic(party)]
    metrics = learn_boosted(party, model, items, boosting=options_of(party).boosting)
    outbox = Outbox()
    publish_model(party, model, outbox)
    if options_of(party).noise != "off":
        outbox.public.clear()
    add_evaluation(outbox, measure(party, model, "after the round"), metrics)
    return outbox


def learn_server(party: Party) -> Outbox:
    """Learn what ``server_update`` names, and be measured."""
    model, update = party.open_model(), options_of(party).server_update
    outbox, metrics = Outbox(), {}
    if update != "none":
        examples = on_slm(party, model) if update == "sft_on_slm" else top_voted(party, model)
        metrics = imitate(party, model, examples)
        publish_model(party, model, outbox)
    add_evaluation(outbox, measure(party, model, "after the round"), metrics)
    return outbox


# -- steps with LaDa as a guest


def select(party: Party) -> Outbox:
    """Choose among all questions so far; the server asks its clients for texts, which have its own."""
    outbox, allocations = Outbox(), allocations_of(party)
    ask = party.role == "server"
    select_samples(party, party.open_model(), allocations, outbox, round=party.round, ask=ask)
    return outbox


def respond_to_server(party: Party) -> Outbox:
    """Answer what this client selected and what the server asks for; send the latter."""
    return plugin.send_texts(party, selected(allocations_of(party)), plugin.asked(party))


def learn_pairs(party: Party) -> Outbox:
    """LaDa's learning: the server from its clients' texts, a client from the stated solutions."""
    model, allocations, stated = party.open_model(), allocations_of(party), solutions(party)
    if party.role == "server":
        pairs = plugin.received_pairs(party, allocations, stated, plugin.their_texts(party))
        outbox = plugin.learn_from(party, model, allocations, pairs)
    else:
        pairs = plugin.received_pairs(party, allocations, plugin.own_texts(party), {SERVER: stated})
        items = [party.synthetic[pair.id].item() for pair in plugin.useful_pairs(party, pairs)]
        weights = even_weights(party, model, items, boosting=options_of(party).boosting)
        hooks = Hooks(weights.keep, memory=weights)
        outbox = plugin.learn_from(party, model, allocations, pairs, hooks)
        add_metrics(outbox, weights.end())
    keep_allocations(allocations, outbox)
    return outbox


def _needed(step: int) -> Callable[[Config], bool]:
    return lambda options: options.steps > step


STEPS = (
    Step("prepare", server=prepare_server, client=prepare_client, once=True),
    Step("write_0", server=write, once=True),
    *(
        one
        for step in range(1, MOST_STEPS)
        for one in (
            Step(f"vote_{step}", client=vote, once=True, when=_needed(step)),
            Step(f"write_{step}", server=write, once=True, when=_needed(step)),
        )
    ),
    Step("vote", client=vote),
    Step("write", server=write),
    *alone(
        Step("respond", client=respond, when=lambda options: options.server_update == "sft_on_slm"),
        Step("learn", server=learn_server, client=learn_client),
    ),
    *hosted(
        Step("select", server=select, client=select),
        Step("respond", client=respond_to_server),
        Step("learn", server=learn_pairs, client=learn_pairs),
    ),
)


# -- parts of the steps


def options_of(party: Party) -> Config:
    """The method's options."""
    assert isinstance(party.options, Config)
    return party.options


def synthetic(party: Party) -> list[Synthetic]:
    """All questions so far, in the order of publication."""
    return party.inbox.questions(steps=WRITING)


def allocations_of(party: Party) -> Allocations:
    """The hosted LaDa's, with all questions so far to select from."""
    return open_allocations(party, [question.id for question in synthetic(party)])


def solutions(party: Party) -> dict[str, Response]:
    """Synthetic id -> the solution that it was published with, as the server's text."""
    return {
        question.id: Response(id=question.id, text=solution(question.item())) for question in synthetic(party)
    }


def embedder(party: Party) -> Embed:
    """The fixed embedder, the same for all parties in all rounds."""
    options = options_of(party)
    if options.embedder == "tfidf":
        # Choice: how rare a word is follows from the public questions, which all parties have.
        return tfidf_embedder([question_text(question) for question in party.public.values()])
    folder = model_folder(party.config)(options.embedder_model)
    return hidden_embedder(load_model(folder, dtype=party.config.numerics.dtype), resume=party.resume)


def writer(party: Party) -> Writer:
    """The LLM as it stands, as a writer of questions."""
    options, generation = options_of(party), party.config.generation
    how = {name: getattr(options, name) for name in ("temperature", "top_p", "max_new_tokens")}
    return Writer(
        model=party.open_model(),
        form=FORMS[party.config.template],
        prompt=party.prompt,
        # What is written may hold an answer line of its own.
        writing=generation.model_copy(update={**how, "stop_at_answer": False}),
        solving=generation.model_copy(update={"temperature": 0.0}),
        embed=embedder(party),
        duplicate=options.duplicate,
        asks=options.asks,
        phase=party.reporter.phase,
        resume=party.resume,
    )


def first_examples(party: Party) -> list[Question]:
    """What requests show before anyone has voted; new questions must differ from it."""
    if options_of(party).first_examples == "public":
        return list(party.public.values())
    demo: list[Question] = list(read_jsonl(Item, party.run.demo))
    return demo


def examples(
    party: Party, known: Sequence[Synthetic], first: Sequence[Question]
) -> Callable[[random.Random], Examples]:
    """Draws the examples of a request: bad and good ones by votes, or the first ones where nobody voted."""
    size = options_of(party).examples
    good, bad = contrast(*received_votes(party), size)

    def draw(rng: random.Random) -> Examples:
        if not good:
            return [], rng.sample(first, min(size // 2, len(first)))
        sides = [rng.sample(side, min(size // 2, len(side))) for side in (bad, good)]
        return [known[place].item() for place in sides[0]], [known[place].item() for place in sides[1]]

    return draw


def received_votes(party: Party) -> tuple[Histogram, Histogram]:
    """Near and far votes summed over the clients, on the questions that were there when they voted.

    Raises:
        ExchangeError: check ``votes`` when a client's votes without noise are more than its questions cast.
    """
    options = options_of(party)
    limit = party.config.data.num_train * votes_of_one(options.depth)
    sums: dict[str, Histogram] = {}
    for client in party.partners:
        votes, origin = party.inbox.votes(client, steps=VOTING)
        for side, values in votes.items():
            exact = values.astype(np.float64)
            if options.noise == "off" and (exact.min(initial=0) < 0 or exact.sum() > limit):
                raise origin.error("votes", f"'{side}' sums to {exact.sum():g}; {limit:g} votes are legal")
            sums[side] = sums.get(side, 0.0) + exact
    return sums["near"], sums["far"]


def vote_sigma(party: Party) -> float:
    """Standard deviation of the noise on each entry of a client's histograms."""
    options = options_of(party)
    return noise_sigma(
        options.depth,
        epsilon=options.epsilon,
        delta=options.delta,
        releases=options.steps - 1 + party.config.rounds,
        parties=len(party.config.clients) if options.secure_sum else 1,
    )


def top_voted(party: Party, model: LanguageModel) -> list[Example]:
    """The questions with the most near votes, with their own solutions."""
    questions, (near, _) = synthetic(party), received_votes(party)
    places = top_share(near, len(questions), options_of(party).top_share)
    return [solved_example(party, model, questions[place].item()) for place in places]


def on_slm(party: Party, model: LanguageModel) -> list[Example]:
    """The clients' texts on all synthetic questions."""
    texts = {
        client: by_id(party.inbox.latest(client, TEXTS, Response, steps=("respond",)))
        for client in party.partners
    }
    return text_examples(party, model, texts)
