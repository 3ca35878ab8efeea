"""Local fine-tuning (paper, Section IV-A): each client's SLM on its own questions, its reference policy.

Every method begins with this step. The server does not train here: its reference is the LLM as it came.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lada.answers import extract_letter
from lada.config import GenerationOptions, TrainOptions
from lada.evaluation import Evaluation, evaluate
from lada.generation import generate
from lada.language_model import LanguageModel
from lada.losses import PairLoss
from lada.manifest import Outbox
from lada.party import MODEL_FILE, Party, json_payload, model_payloads, records_payload
from lada.prepared import prepared
from lada.prompts import answer_only, join
from lada.records import Item
from lada.results import METRICS_FILE
from lada.training import NO_HOOKS, Example, Hooks, Loss, Term, fit
from lada.training_state import StepLog

LENGTHS_FILE = "state/test_lengths.json"


def prepare_client(party: Party) -> Outbox:
    """Measure the model as it came, fine-tune it locally, measure it again (see `prepared`)."""
    return prepared(party, _fine_tune)


def prepare_server(party: Party) -> Outbox:
    """Measure the LLM on the union of the clients' tests; nothing is trained (see `prepared`)."""
    return prepared(party, _measure_only)


def _fine_tune(party: Party) -> Outbox:
    model = party.open_model()
    base = measure(party, model, "before local training")
    train_locally(party, model, party.training("local"))
    tuned = measure(party, model, "after local training")
    outbox = Outbox()
    outbox.private[MODEL_FILE], _ = model_payloads(model, party)
    metrics = {"accuracy_base": base.metrics["accuracy"], "accuracy_base_se": base.metrics["accuracy_se"]}
    add_evaluation(outbox, tuned, metrics)
    return outbox


def _measure_only(party: Party) -> Outbox:
    outbox = Outbox()
    found = measure(party, party.open_model(), "before any training")
    metrics = {
        "accuracy_base": found.metrics["accuracy"],
        "accuracy_base_se": found.metrics["accuracy_se"],
    }
    add_evaluation(outbox, found, metrics)
    return outbox


def train_locally(party: Party, model: LanguageModel, options: TrainOptions) -> list[StepLog]:
    """Cross-entropy on the client's own questions with the configured target."""
    texts = local_targets(party, model)
    examples = [
        supervised(model, item.id, party.prompt(item), join(text, party.config.template))
        for item, text in zip(party.train_items, texts, strict=True)
    ]
    return train(party, model, examples, options, PairLoss(kind="cross_entropy"), name="local training")


def train(
    party: Party,
    model: LanguageModel,
    examples: Sequence[Example],
    options: TrainOptions,
    loss: Loss,
    *,
    name: str,
    learning_rate: float | None = None,
    hooks: Hooks = NO_HOOKS,
) -> list[StepLog]:
    """`fit` with a progress display; returns the log of its steps."""
    total = options.max_steps or options.epochs * math.ceil(len(examples) / options.batch_size)
    tick = party.reporter.phase(name, total)

    def watch(log: StepLog) -> None:
        tick(log.step + 1, f"loss {log.objective:.3f}")
        if hooks.after_step is not None:
            hooks.after_step(log)

    return fit(
        model,
        examples,
        options,
        loss,
        learning_rate=options.learning_rate if learning_rate is None else learning_rate,
        seed=party.seed("order"),
        head_chunk=party.config.numerics.head_chunk,
        hooks=replace(hooks, after_step=watch),
        resume=party.resume,
    )


def local_targets(party: Party, model: LanguageModel) -> list[str]:
    """One target per local question: `answer_only`, or the client's own right rationale if it has one."""
    items = party.train_items
    if party.config.local.target == "answer_only":
        return [answer_only(item) for item in items]
    found: dict[str, str] = {}
    for sample in range(party.config.local.num_samples):
        rest = [item for item in items if item.id not in found]
        found |= _right_rationales(party, model, rest, sample)
    return [found.get(item.id, answer_only(item)) for item in items]


def _right_rationales(
    party: Party, model: LanguageModel, items: Sequence[Item], sample: int
) -> dict[str, str]:
    """Texts that the model itself finds and that give the right letter; sample 0 is greedy.

    Choice: questions without any such text fall back to ``answer_only`` (baselines, section 2e).
    """
    temperature = 0.0 if sample == 0 else party.config.local.temperature
    options = party.config.generation.model_copy(update={"temperature": temperature})
    tick = party.reporter.phase(f"own rationales, draw {sample + 1}", len(items))
    drawn = generate(
        model,
        [party.prompt(item) for item in items],
        options,
        seed=party.seed(f"rationale-{sample}"),
        progress=lambda done, total: tick(done, ""),
        resume=party.resume,
    )
    return {
        item.id: one.text
        for item, one in zip(items, drawn, strict=True)
        if one.finished and extract_letter(one.text, item.options) == item.answer
    }


def supervised(model: LanguageModel, sample: str, prompt: str, response: str) -> Example:
    """A question and the one text to learn."""
    return Example(
        id=sample,
        prompt=tuple(model.prompt_ids(prompt)),
        responses=(tuple(model.response_ids(response)),),
        terms=(Term(partner="", chosen=0, rejected=None),),
    )


def measure(party: Party, model: LanguageModel, name: str) -> Evaluation:
    """Accuracy on the party's test questions, by greedy generation in the run's setting."""
    total = len(party.test_items)
    tick = party.reporter.phase(f"test {name}", total)
    greedy: GenerationOptions = party.config.generation.model_copy(update={"temperature": 0.0})
    found = evaluate(
        model,
        party.test_items,
        template=party.config.template,
        demo=party.demo,
        options=greedy,
        expected_lengths=expected_lengths(party, LENGTHS_FILE, [item.id for item in party.test_items]),
        progress=lambda done, _: tick(min(done, total - 1), ""),
        resume=party.resume,
    )
    tick(total, f"accuracy {100 * found.metrics['accuracy']:.1f} %")
    return found


def expected_lengths(party: Party, name: str, ids: Sequence[str]) -> list[int] | None:
    """Last known output lengths of these samples, so that what ends together is decoded together.

    A sample without one is expected to be as long as the longest; None where nothing is known at all.
    """
    known: dict[str, int] | None = party.latest_json(name)
    if not known:
        return None
    longest = max(known.values())
    return [known.get(sample, longest) for sample in ids]


def add_evaluation(outbox: Outbox, found: Evaluation, metrics: dict[str, float]) -> None:
    """Put predictions, metrics and output lengths into an outbox."""
    outbox.private["predictions.jsonl"] = records_payload(found.predictions, "predictions")
    outbox.private[METRICS_FILE] = json_payload({**found.metrics, **metrics}, "metrics")
    outbox.private[LENGTHS_FILE] = json_payload(found.lengths, "state")


def add_metrics(outbox: Outbox, found: Mapping[str, float]) -> None:
    """Put more metrics beside those of an outbox."""
    before = json.loads(outbox.private[METRICS_FILE].data)
    outbox.private[METRICS_FILE] = json_payload({**before, **found}, "metrics")
