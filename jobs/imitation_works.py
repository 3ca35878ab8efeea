"""What steps of FedKD, SFT, Standalone, Socratic CoT and rStar compute and send (see `method_works`)."""

from __future__ import annotations

from jobs.stage_works import Run, StageWork, partners_of
from jobs.workload import Work
from lada.rundir import Stage

SEARCH_COMPLETIONS, SEARCH_SHARE = 50, 0.6
"""Completions per question of rStar's default search (the lab tier's runs counted 49.7), and their length in
reasoning texts: most are single thoughts or sub-questions."""
SEARCH_TRACES = 1.5
"""Solutions per question that it finds (the lab tier's runs counted 1.5)."""
SUB_QUESTIONS = 1.6
"""Length of a trace of sub-questions in reasoning texts (baselines study: 1.3 to 2)."""


def answer_all(run: Run, stage: Stage) -> StageWork:
    """A party answers the whole public set for all its partners."""
    return StageWork([("answers", run.generate(run.public))], texts=run.public * partners_of(run, stage))


def imitate(run: Run, stage: Stage) -> StageWork:
    """Cross-entropy on every partner's text on every public question; test."""
    partners = partners_of(run, stage)
    training = run.train(run.role(stage.party), run.public, run.public * partners, run.response)
    return StageWork([training, run.evaluate(stage.party)], models=partners)


def practise(run: Run, stage: Stage) -> StageWork:
    """A round's worth of further local steps."""
    client, local = run.role(stage.party), run.config.training.local
    steps = run.method.get("steps_per_round") or client.max_steps
    steps = steps or client.epochs * -(-run.public // client.batch_size)
    length = run.texts.answer if run.config.local.target == "answer_only" else run.response
    items = run.config.data.num_train
    options = local.model_copy(update={"max_steps": steps})
    return StageWork([run.train(options, items, items, length), run.evaluate(stage.party)])


def decompose(run: Run, stage: Stage) -> StageWork:
    """The LLM answers plainly and by sub-questions."""
    works = [
        ("answers", run.generate(run.public)),
        ("sub-questions", run.generate(run.public, scale=SUB_QUESTIONS)),
    ]
    return StageWork(works, texts=SUB_QUESTIONS * run.public * partners_of(run, stage))


def imitate_traces(run: Run, stage: Stage) -> StageWork:
    """Cross-entropy on traces of sub-questions; test, with the longer answers that were learnt."""
    options, length = run.role(stage.party), SUB_QUESTIONS * run.response
    training = run.train(options, run.public, run.public, length)
    test = ("test", run.generate(run.test, scale=SUB_QUESTIONS))
    return StageWork([training, test], models=1)


def search(run: Run, stage: Stage) -> StageWork:
    """Tree search over all public questions: on the server once (R2), on clients every round (R3)."""
    rollouts = run.method["search"]["rollouts"] / 4
    drawn = run.generate(run.public * SEARCH_COMPLETIONS * rollouts, scale=SEARCH_SHARE)
    return StageWork([("tree search", drawn)], texts=SEARCH_TRACES * run.public * partners_of(run, stage))


def verify(run: Run, stage: Stage) -> StageWork:
    """The server completes every client's solutions (R3)."""
    return StageWork([_completions(run, run.clients)], other=2 * SEARCH_TRACES * run.public * run.clients)


def learn_consistent(run: Run, stage: Stage) -> StageWork:
    """A client completes the solutions (R2), learns those that it could complete, is tested."""
    works = [_completions(run, 1)] if run.method["reading"] == "R2" and run.method["discriminator"] else []
    sequences = run.public * run.method["traces_per_question"]
    works.append(run.train(run.role(stage.party), run.public, sequences, run.response))
    return StageWork([*works, run.evaluate(stage.party)], models=1)


def _completions(run: Run, clients: int) -> tuple[str, Work]:
    count = clients * SEARCH_TRACES * run.public * run.method["check"]["masks"]
    return "completions", run.generate(count, scale=0.65)
