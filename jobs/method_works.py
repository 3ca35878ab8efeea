"""What each step of each method has a party compute, and what it sends.

Counts are means or upper bounds where a run decides them: how many samples a filter selects, how many
questions or solutions are found. Left out, as they take seconds beside minutes: filters, k-means, votes,
alignment of tokenizers, files. A method that is not in `STEPS` is planned by its time limits alone.
"""

from __future__ import annotations

from collections.abc import Callable

from jobs import exchange_works as exchange
from jobs import imitation_works as imitation
from jobs import lada_works as lada
from jobs.stage_works import Run, StageWork
from lada.rundir import Stage


def stage_work(run: Run, stage: Stage) -> StageWork:
    """What a stage computes and sends; `StageWork.unknown` for a step that is not modelled."""
    name = run.method["name"]
    if stage.step == "prepare":
        return lada.prepare(run, stage)
    step = stage.step.split("_")[0]  # write_0, write_1, … are alike
    tables = [name]
    if run.method.get("plugin") == "lada":
        tables = [f"{name}+lada", *(["wasp"] if step in ("write", "vote") else []), "lada"]
    found = next((STEPS[table, step] for table in tables if (table, step) in STEPS), None)
    return StageWork(unknown=True) if found is None else found(run, stage)


StepWork = Callable[[Run, Stage], StageWork]
STEPS: dict[tuple[str, str], StepWork] = {
    ("lada", "respond"): lada.respond,
    ("lada", "learn"): lada.learn,
    ("lada", "teach"): lada.learn,
    ("lada", "renew"): lada.answer_asked,
    ("fedkd", "respond"): imitation.answer_all,
    ("fedkd", "answer"): imitation.answer_all,
    ("fedkd", "learn"): imitation.imitate,
    ("fedkd", "teach"): imitation.imitate,
    ("sft", "answer"): imitation.answer_all,
    ("sft", "respond"): imitation.answer_all,
    ("sft", "learn"): imitation.imitate,
    ("standalone_matched", "practise"): imitation.practise,
    ("socratic_cot", "decompose"): imitation.decompose,
    ("socratic_cot", "learn"): imitation.imitate_traces,
    ("fedmkt", "vote"): exchange.vote_letters,
    ("fedmkt", "label"): exchange.label,
    ("fedmkt", "share"): exchange.share,
    ("fedmkt", "teach"): exchange.transfer,
    ("fedmkt", "learn"): exchange.transfer,
    ("fedmkt+lada", "respond"): exchange.train_and_respond,
    ("fedmkt+lada", "answer"): lada.answer_asked,
    ("wasp", "write"): exchange.write,
    ("wasp", "vote"): exchange.vote,
    ("wasp", "respond"): exchange.answer_written,
    ("wasp", "learn"): exchange.learn_written,
    ("wasp+lada", "select"): lada.select,
    ("rstar", "search"): imitation.search,
    ("rstar", "verify"): imitation.verify,
    ("rstar", "learn"): imitation.learn_consistent,
}
"""(Method, step) -> its work. A host of LaDa has LaDa's steps but for those under its name + ``+lada``."""
