"""rStar: a tree search writes solutions, another model must be able to complete them (baselines, section 8).

``R2``, offline mining: before round 1 the server's LLM searches solutions of all public questions and sends
its best ones; every round each client's SLM, as it is by then, completes their beginnings, and learns the
best solution that it could complete itself. ``R3``, closest to rStar's own roles: every round each client's
SLM searches, the LLM completes, and the SLM learns what both agree on; solutions go up, verdicts come down.

No reference answer enters anywhere: answers are counted. The LLM is never trained, so it is measured once.

Choices: test-time search (reading R1) is left out, it would send private questions. A question without a
consistent solution is left out, since there is nothing of it that the client could complete. The server
searches all public questions also when clients learn from a replayed selection of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from lada.answering import OWN_TEXTS, answer
from lada.config import SERVER, Options, derive_seed
from lada.consistency import Checked, CheckOptions, check, choose
from lada.distillation import training_metrics
from lada.imitation import imitate, publish_model, text_logs
from lada.language_model import LanguageModel
from lada.local import add_evaluation, measure, prepare_client, prepare_server, train
from lada.losses import PairLoss
from lada.manifest import Outbox
from lada.method import Step
from lada.pairs import make_examples, text_pairs
from lada.party import Party, json_payload, records_payload
from lada.prompts import join
from lada.records import MAX_TRACES, Response, Trace, Verdict, parse_jsonl
from lada.results import METRICS_FILE, SAMPLES_FILE
from lada.training import Example, Term, sequence_log_probs, with_reference
from lada.tree_actions import Expander, Partial, SearchOptions, solutions
from lada.tree_search import Tree
from lada.tree_search import search as grow

TRACES, VERDICTS = "traces.jsonl", "verdicts.jsonl"
OWN_TRACES = "state/traces.jsonl"
ByQuestion = Mapping[str, Sequence[Trace]]


class Config(Options):
    """rStar's options.

    Attributes:
        reading: ``R2``: the server searches, clients check; ``R3``: clients search, the server checks.
        discriminator: False is the majority-only ablation: the most confident answer's best solution is
            learned, nobody checks it.
        traces_per_question: solutions of a question to learn from.
        max_traces: solutions of a question that are sent.
        loss: ``preference`` learns the solution against the client's own plain reasoning.
        beta: of ``preference``: strength of the tie to the reference in Eq. 3.
        replay: a finished LaDa run beside this one, by its id: clients learn from what they selected there.
    """

    reading: Literal["R2", "R3"] = "R2"
    discriminator: bool = True
    traces_per_question: Annotated[int, Field(ge=1, le=2)] = 1
    max_traces: Annotated[int, Field(ge=1, le=MAX_TRACES)] = 8
    loss: Literal["cross_entropy", "preference"] = "cross_entropy"
    beta: Annotated[float, Field(gt=0)] = 0.1
    replay: str | None = None
    search: SearchOptions = SearchOptions()
    check: CheckOptions = CheckOptions()


# -- steps


def search(party: Party) -> Outbox:
    """Search solutions of all public questions; send them to whoever checks or learns them."""
    options = _options(party)
    traces, metrics = find_traces(party)
    payload = records_payload(traces, "traces")
    outbox = Outbox()
    outbox.private[METRICS_FILE] = json_payload(metrics, "metrics")
    if options.reading == "R2":
        outbox.send("all", TRACES, payload)
        return outbox
    outbox.private[OWN_TRACES] = records_payload(traces, "state")
    if options.discriminator:
        outbox.send(SERVER, TRACES, payload)
    return outbox


def verify(party: Party) -> Outbox:
    """The server completes every client's solutions and tells it which ones came out alike (R3)."""
    outbox, model = Outbox(), party.open_model()
    metrics: dict[str, float] = {}
    for client in party.partners:
        traces = _by_question(party.inbox.latest(client, TRACES, Trace, steps=("search",)))
        found = judge(party, model, traces, client)
        verdicts = [
            Verdict(id=name, place=place, consistent=value)
            for (name, place), value in sorted(found.verdicts.items())
        ]
        outbox.send(client, VERDICTS, records_payload(verdicts, "verdicts"))
        metrics |= {f"{key}/{client}": value for key, value in _check_metrics(found).items()}
    outbox.private[METRICS_FILE] = json_payload(metrics, "metrics")
    return outbox


def learn(party: Party) -> Outbox:
    """Choose the solutions to learn from, learn them, be measured."""
    options, model = _options(party), party.open_model()
    traces = _wanted(party, received_traces(party))
    verdicts, metrics = received_verdicts(party, model, traces)
    chosen = {
        name: found
        for name, mine in traces.items()
        if (found := choose(mine, verdicts, most=options.traces_per_question))
    }
    metrics["kept_share"] = len(chosen) / max(1, len(party.public))
    outbox = Outbox()
    own: dict[str, Response] = {}
    if options.loss == "preference":
        own, kept = answer(party, list(chosen))
        outbox.private[OWN_TEXTS] = kept.private[OWN_TEXTS]
        metrics |= prefer(party, model, chosen, own)
    else:
        metrics |= imitate(party, model, trace_examples(party, model, chosen))
    publish_model(party, model, outbox)
    by = "mutual_consistency" if options.discriminator else "majority"
    logs = text_logs(party, {SERVER: _best(chosen)}, by, own=own)
    outbox.private[SAMPLES_FILE] = records_payload(logs, "diagnostics")
    add_evaluation(outbox, measure(party, model, "after the round"), metrics)
    return outbox


def _checked_above(options: Config) -> bool:
    return options.reading == "R3" and options.discriminator


STEPS = (
    Step("prepare", server=prepare_server, client=prepare_client, once=True),
    Step("search", server=search, once=True, when=lambda options: options.reading == "R2"),
    Step("search", client=search, when=lambda options: options.reading == "R3"),
    Step("verify", server=verify, when=_checked_above),
    Step("learn", client=learn),
)


# -- parts of the steps


def find_traces(party: Party) -> tuple[list[Trace], dict[str, float]]:
    """Search all public questions at a time; the best solutions of each, and metrics of the search."""
    options = _options(party)
    expand = Expander(
        party.open_model(),
        options.search,
        party.config.generation,
        template=party.config.template,
        demo=party.demo,
        resume=party.resume,
    )
    seed = party.seed("search")
    trees = [Tree(Partial(one), derive_seed(seed, one.id)) for one in party.public.values()]
    tick = party.reporter.phase("tree search, rollouts", options.search.rollouts)
    grow(
        trees, expand, options.search, progress=lambda done, total: tick(done, f"{expand.drawn} completions")
    )
    traces = [
        Trace(id=tree.root.question.id, place=place, text=one.text, letter=one.letter, reward=one.reward)
        for tree in trees
        for place, one in enumerate(solutions(tree, options.max_traces), start=1)
    ]
    solved = len({trace.id for trace in traces})
    return traces, {
        "searched_questions": float(len(trees)),
        "solved_questions": float(solved),
        "traces": float(len(traces)),
        "search_nodes": float(sum(len(tree.nodes) for tree in trees)),
        "search_completions": float(expand.drawn),
        "search_completions_dropped": float(expand.dropped),
    }


def received_traces(party: Party) -> ByQuestion:
    """Sample id -> solutions: the server's (R2), or what this client found itself (R3)."""
    if _options(party).reading == "R2":
        return _by_question(party.inbox.latest(SERVER, TRACES, Trace, steps=("search",)))
    content = (party.latest(OWN_TRACES) or b"").decode()
    return _by_question(parse_jsonl(Trace, content, source=OWN_TRACES))


def received_verdicts(
    party: Party, model: LanguageModel, traces: ByQuestion
) -> tuple[dict[tuple[str, int], bool] | None, dict[str, float]]:
    """Verdicts by trace and metrics; None without a discriminator."""
    options = _options(party)
    if not options.discriminator:
        return None, {}
    if options.reading == "R3":
        records = party.inbox.latest(SERVER, VERDICTS, Verdict, steps=("verify",))
        return {(one.id, one.place): one.consistent for one in records}, {}
    found = judge(party, model, traces, party.name)
    return found.verdicts, _check_metrics(found)


def judge(party: Party, model: LanguageModel, traces: ByQuestion, name: str) -> Checked:
    """Complete the beginnings of solutions; see `check`."""
    tick = party.reporter.phase(f"completions for {name}", 1)
    return check(
        model,
        traces,
        {one: (party.public[one], party.prompt(party.public[one])) for one in traces},
        _options(party).check,
        generation=party.config.generation,
        template=party.config.template,
        seed=party.seed(f"check/{name}"),
        progress=lambda done, total: tick(done // total, f"{done}/{total}"),
        resume=party.resume,
    )


def trace_examples(party: Party, model: LanguageModel, chosen: ByQuestion) -> list[Example]:
    """One example per question; several solutions of it share its weight."""
    template = party.config.template
    return [
        Example(
            id=name,
            prompt=tuple(model.prompt_ids(party.prompt(party.public[name]))),
            responses=tuple(tuple(model.response_ids(join(one.text, template))) for one in traces),
            terms=tuple(Term(SERVER, place, None, 1 / len(traces)) for place in range(len(traces))),
        )
        for name, traces in chosen.items()
    ]


def prefer(
    party: Party, model: LanguageModel, chosen: ByQuestion, own: Mapping[str, Response]
) -> dict[str, float]:
    """Train by Eq. 3: the best solution of a question against the party's own plain reasoning."""
    found = text_pairs({SERVER: list(chosen)}, {SERVER: _best(chosen)}, own)
    pairs = [pair for pair in found if not pair.same]
    examples = make_examples(party, model, pairs, {(pair.id, SERVER): 1.0 for pair in pairs})
    options, chunk = party.training("client"), party.config.numerics.head_chunk
    with model.reference():
        known = sequence_log_probs(
            model, examples, micro_tokens=options.micro_tokens, head_chunk=chunk, resume=party.resume
        )
    examples = with_reference(examples, known)
    loss = PairLoss(kind="preference", beta=_options(party).beta)
    rate = options.learning_rate * options.decay ** (party.round - 1)
    logs = train(party, model, examples, options, loss, name="distillation", learning_rate=rate)
    return training_metrics(examples, logs)


def _best(chosen: ByQuestion) -> dict[str, Response]:
    return {name: Response(id=name, text=traces[0].text) for name, traces in chosen.items()}


def _options(party: Party) -> Config:
    assert isinstance(party.options, Config)
    return party.options


def _by_question(traces: Sequence[Trace]) -> ByQuestion:
    found: dict[str, list[Trace]] = {}
    for trace in sorted(traces, key=lambda one: (one.id, one.place)):
        found.setdefault(trace.id, []).append(trace)
    return found


def _wanted(party: Party, traces: ByQuestion) -> ByQuestion:
    """Of the questions with solutions, those of the round's replayed selection, if there is one."""
    ids = party.replayed(SERVER, party.round)
    return traces if ids is None else {name: traces[name] for name in sorted(ids) if name in traces}


def _check_metrics(found: Checked) -> dict[str, float]:
    passed = sum(found.verdicts.values())
    return {
        "checked_completions": float(found.completions),
        "questions_unchecked": float(found.skipped),
        "traces_judged": float(len(found.verdicts)),
        "traces_consistent": float(passed),
    }
