"""Socratic CoT: clients learn to take questions apart as the LLM does, which is fixed (baselines, section 7).

The LLM answers every public question twice: by a plain chain of thought, and at the cue ``steps`` by
sub-questions with their solutions. A trace is kept where both give the same letter, which stands in for the
gold filter that the public set does not allow; where the trace is not well-formed, the plain text is taught.

Choice: in both tiers the LLM itself takes the question apart. The lab models were pre-trained at the cue
``Steps:`` to write ``Q1: 12 + 5? A1: 17. …``; real models are asked for this form in words. So lab
sub-questions are as terse as lab reasoning, and the last one does not repeat the question: the prompt,
options and all, precedes every piece, so that the letter can be chosen.
Choice: a trace travels as the text that is learnt, and the client takes it apart again. Public set and LLM do
not change, so traces are made and sent once.
Choice: the cue ``steps`` has no one-shot example, since the run's example is a plain chain of thought.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from lada.answering import TEXTS, answer
from lada.answers import extract_letter
from lada.config import SERVER, Options, Positive
from lada.evaluation import Evaluation, judge
from lada.generation import Generated, generate
from lada.imitation import imitate, publish_model, text_examples, text_logs
from lada.inbox import by_id
from lada.language_model import LanguageModel
from lada.local import add_evaluation, measure, prepare_client, prepare_server
from lada.manifest import Outbox
from lada.method import Step
from lada.party import Party, json_payload, records_payload
from lada.prompts import prompt
from lada.records import Response
from lada.results import METRICS_FILE, SAMPLES_FILE
from lada.socratic import DialogueLimits, as_dialogue, converse, parse_trace, pieces, render_trace
from lada.training import Example, Term


class Config(Options):
    """Socratic CoT's options.

    Attributes:
        variant: ``concat`` learns a trace as one response and is tested like every method; ``unified`` learns
            to ask and to solve as two roles of one model, which take turns in the test.
        agreement: keep a trace only where the LLM's plain chain of thought gives the same letter.
        min_steps: a trace with fewer sub-questions is not well-formed.
        max_steps: a trace with more is not well-formed, and a dialogue ends there.
        question_tokens: most tokens of a sub-question, in traces and dialogues.
        solution_tokens: most tokens of its solution.
    """

    variant: Literal["concat", "unified"] = "concat"
    agreement: bool = True
    min_steps: Positive = 2
    max_steps: Positive = 6
    question_tokens: Positive = 48
    solution_tokens: Positive = 128

    @property
    def limits(self) -> DialogueLimits:
        """Where a dialogue ends."""
        return DialogueLimits(self.max_steps, self.question_tokens, self.solution_tokens)


def decompose(party: Party) -> Outbox:
    """Answer the public set by chain of thought and by sub-questions; send what is to be learnt."""
    assert isinstance(party.options, Config)
    plain, outbox = answer(party, list(party.public))
    model = party.open_model()
    tick = party.reporter.phase("sub-questions", len(party.public))
    asked = [
        prompt(question, template=party.config.template, cue="steps") for question in party.public.values()
    ]
    traces = generate(
        model,
        asked,
        party.config.generation,
        seed=party.seed("steps"),
        progress=lambda done, total: tick(done, ""),
        resume=party.resume,
    )
    chosen, outcomes = choose_texts(party, model, plain, dict(zip(party.public, traces, strict=True)))
    outbox.send("all", TEXTS, records_payload(chosen, "responses"))
    counts = {f"socratic/{name}": count / len(party.public) for name, count in outcomes.items()}
    counts["responses_dropped/decompose"] = float(len(party.public) - len(plain))
    outbox.private[METRICS_FILE] = json_payload(counts, "metrics")
    return outbox


def choose_texts(
    party: Party, model: LanguageModel, plain: Mapping[str, Response], traces: Mapping[str, Generated]
) -> tuple[list[Response], Counter[str]]:
    """What is taught on each question, and how often each outcome came.

    Outcomes: ``kept`` trace; ``disagreed`` with the plain text (nothing is taught); ``fallback`` to the plain
    text, as the trace is not well-formed; ``no_text``, as the plain one hit the length limit too.
    """
    assert isinstance(party.options, Config)
    chosen, outcomes = [], Counter(dict.fromkeys(("kept", "disagreed", "fallback", "no_text"), 0))
    for name, generated in traces.items():
        trace = _well_formed(model, party.options, generated)
        other = plain.get(name)
        if trace is None and other is not None:
            outcome, taught = "fallback", other
        elif trace is None:
            outcome, taught = "no_text", None
        elif party.options.agreement and not _agree(party, name, trace, other):
            outcome, taught = "disagreed", None
        else:
            outcome, taught = "kept", Response(id=name, text=trace)
        outcomes[outcome] += 1
        if taught is not None:
            chosen.append(taught)
    return chosen, outcomes


def learn(party: Party) -> Outbox:
    """Learn the LLM's traces by cross-entropy and be measured."""
    assert isinstance(party.options, Config)
    model, concat = party.open_model(), party.options.variant == "concat"
    texts = by_id(party.inbox.latest(SERVER, TEXTS, Response, steps=("decompose",)))
    options = party.training("client")
    if concat:
        examples = text_examples(party, model, {SERVER: texts})
    else:
        examples = dialogue_examples(party, model, texts)
        # A step learns the pieces of about as many questions as a step of `concat` learns traces.
        share = len(examples) / max(1, len(texts))
        options = options.model_copy(update={"batch_size": max(1, round(options.batch_size * share))})
    metrics = imitate(party, model, examples, options)
    metrics["trained_samples"] = float(len(texts))
    outbox = Outbox()
    publish_model(party, model, outbox)
    outbox.private[SAMPLES_FILE] = records_payload(text_logs(party, {SERVER: texts}, "all"), "diagnostics")
    found = measure(party, model, "after the round") if concat else measure_dialogue(party, model)
    add_evaluation(outbox, found, metrics)
    return outbox


STEPS = (
    Step("prepare", server=prepare_server, client=prepare_client, once=True),
    Step("decompose", server=decompose, once=True),
    Step("learn", client=learn),
)


# -- parts of the steps


def dialogue_examples(party: Party, model: LanguageModel, texts: Mapping[str, Response]) -> list[Example]:
    """One example per piece, so that asker and solver learn only what is theirs to say.

    Weights make the objective the mean over questions of L_QG + L_QA per token of the whole dialogue, which
    is the scale of ``concat``.
    """
    found = []
    for name, text in sorted(texts.items()):
        question = party.public[name]
        steps = as_dialogue(question, text.text)
        said = pieces(steps, party.config.template)
        responses = [tuple(model.response_ids(piece.said)) for piece in said]
        total = sum(len(response) for response in responses)
        for place, (piece, response) in enumerate(zip(said, responses, strict=True)):
            example = Example(
                id=f"{name}/{place}",
                prompt=tuple(model.prompt_ids(party.prompt(question) + piece.context)),
                responses=(response,),
                terms=(Term(SERVER, chosen=0, rejected=None, weight=len(response) / total),),
            )
            found.append(example)
    scale = len(found) / max(1, len(texts))
    return [_scaled(example, scale) for example in found]


def measure_dialogue(party: Party, model: LanguageModel) -> Evaluation:
    """Accuracy on the party's test questions when the model asks and solves in turn."""
    assert isinstance(party.options, Config)
    items = party.test_items
    tick = party.reporter.phase("test by dialogue", len(items))
    answers = converse(
        model,
        [party.prompt(item) for item in items],
        party.config.generation.model_copy(update={"temperature": 0.0}),
        party.options.limits,
        template=party.config.template,
        progress=lambda done, total: tick(done, ""),
        resume=party.resume,
    )
    return judge(items, answers)


def _scaled(example: Example, scale: float) -> Example:
    (term,) = example.terms
    return replace(example, terms=(replace(term, weight=term.weight * scale),))


def _well_formed(model: LanguageModel, options: Config, trace: Generated) -> str | None:
    """The trace as it is taught, or None."""
    steps = parse_trace(trace.text) if trace.finished else None
    if steps is None or not options.min_steps <= len(steps) <= options.max_steps:
        return None
    for step in steps:
        if _tokens(model, step.question) > options.question_tokens:
            return None
        if _tokens(model, step.solution) > options.solution_tokens:
            return None
    return render_trace(steps)


def _tokens(model: LanguageModel, text: str) -> int:
    return len(model.response_ids(text, finished=False))


def _agree(party: Party, name: str, trace: str, plain: Response | None) -> bool:
    options: Sequence[str] = party.public[name].options
    return plain is not None and extract_letter(trace, options) == extract_letter(plain.text, options)
