"""What LaDa's steps compute and send, and what every method begins with (see `method_works`)."""

from __future__ import annotations

from jobs.stage_works import Run, StageWork, partners_of
from lada.config import SERVER
from lada.rundir import Stage

REWARD_BYTES = 12


def prepare(run: Run, stage: Stage) -> StageWork:
    """Local fine-tuning between two tests; the server is tested once. With LaDa, the first selection."""
    test = run.evaluate(stage.party)
    works = [test] if stage.party == SERVER else [test, *run.local_training(), test]
    guest = run.method["name"] == "lada" or run.method.get("plugin") == "lada"
    if not guest or run.method["name"] == "wasp":
        return StageWork(works)
    return StageWork([*works, run.prompts()], ids=run.pairs * partners_of(run, stage))


def respond(run: Run, stage: Stage) -> StageWork:
    """Both sides answer what they selected and what was asked of them."""
    partners = partners_of(run, stage)
    works = [("answers", run.generate(run.union(2 * partners)))]
    return StageWork(works, texts=run.pairs * partners)


def answer_asked(run: Run, stage: Stage) -> StageWork:
    """A party answers what others asked for, afresh."""
    partners = partners_of(run, stage)
    return StageWork([("answers", run.generate(run.union(partners)))], texts=run.pairs * partners)


def learn(run: Run, stage: Stage) -> StageWork:
    """Reference, entry and exit passes around training on pairs; test; features for the next selection."""
    partners, options = partners_of(run, stage), run.role(stage.party)
    examples, chosen = run.union(partners), run.pairs * partners
    both = chosen + examples  # a party's own text on a sample is forwarded once, however many pairs it is in
    preference = run.guest.get("reasoning_distillation", True)
    works = [run.read("reference pass", both)] if preference else []
    works += [run.read("entry pass", both)] if run.guest.get("entry_pass", True) else []
    works.append(run.train(options, examples, both if preference else chosen, run.response))
    if run.guest.get("reward", {}).get("batch_pairing") == "same_batch":
        works.append(run.read("rewards", both * options.epochs))
    works += [run.read("exit pass", both), run.evaluate(stage.party)]
    last = stage.round == run.config.rounds or run.method["name"] == "wasp"
    works += [] if last else [run.prompts()]
    ids = 0.0 if last else chosen
    return StageWork(works, ids=ids, rewards=REWARD_BYTES * chosen * partners, models=partners)


def select(run: Run, stage: Stage) -> StageWork:
    """Features and selection in a step of their own (WASP as a host)."""
    return StageWork([run.prompts()], ids=run.pairs * partners_of(run, stage))
