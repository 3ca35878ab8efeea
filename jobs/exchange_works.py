"""What FedMKT's and WASP's steps compute and send (see `method_works`)."""

from __future__ import annotations

from jobs.lada_works import respond
from jobs.stage_works import Run, StageWork, partners_of
from lada.config import SERVER
from lada.rundir import Stage

REPLIES = 1.5
"""Replies that WASP draws per new question; at most three times as many as wanted."""
LETTER_BYTES, LOGIT_BYTES, VOTE_BYTES = 1, 16, 8


def vote_letters(run: Run, stage: Stage) -> StageWork:
    """A client's letters on the public set, by reasoning."""
    return StageWork([("answers", run.generate(run.public))], other=LETTER_BYTES * run.public)


def label(run: Run, stage: Stage) -> StageWork:
    """The server's letters, and what it knows of the labelled texts."""
    works = [("answers", run.generate(run.public)), run.read("knowledge", run.public, _shared(run))]
    texts = run.public * run.clients if run.method.get("mode") == "seq" else 0
    return StageWork(works, texts=texts, other=LETTER_BYTES * run.public * run.clients)


def share(run: Run, stage: Stage) -> StageWork:
    """Private training from round 2 on, then knowledge of the shared texts."""
    works = run.local_training() if stage.round > 1 else []
    return StageWork([*works, run.read("knowledge", run.public, _shared(run))], other=_knowledge(run))


def transfer(run: Run, stage: Stage) -> StageWork:
    """Training on the shared texts and the chosen knowledge; test; the server's own knowledge afterwards."""
    training = run.train(run.role(stage.party), run.public, run.public, _shared(run))
    works, server = [training, run.evaluate(stage.party)], stage.party == SERVER
    works += [run.read("knowledge", run.public, _shared(run))] if server else []
    return StageWork(
        works, other=_knowledge(run) * run.clients if server else 0.0, models=partners_of(run, stage)
    )


def train_and_respond(run: Run, stage: Stage) -> StageWork:
    """FedMKT as LaDa's host: a client's private training before it answers."""
    found = respond(run, stage)
    if stage.party == SERVER:
        return StageWork([("answers", run.generate(run.union(run.clients)))])
    return StageWork([*(run.local_training() if stage.round > 1 else []), *found.works], texts=found.texts)


def _shared(run: Run) -> float:
    return run.response if run.method.get("mode") == "seq" else 1


def _knowledge(run: Run) -> float:
    """Bytes of what one party knows of all shared texts: float16 logits and int32 ids, or four letters'."""
    if run.method.get("mode") == "seq":
        return run.public * run.response * float(run.method["top_k"]) * 6
    return LOGIT_BYTES * run.public


def write(run: Run, stage: Stage) -> StageWork:
    """New questions with solutions, and an independent solution of each."""
    wanted = REPLIES * _per_step(run)
    prompt = run.method["examples"] * (run.texts.question + run.response)
    works = [
        ("new questions", run.generate(wanted, prompt=prompt, scale=1 + run.texts.question / run.response)),
        ("solving them", run.generate(wanted)),
    ]
    return StageWork(works, texts=2 * _per_step(run) * run.clients)


def vote(run: Run, stage: Stage) -> StageWork:
    """Two histograms over all questions so far; the embedder's seconds are left out."""
    return StageWork([], other=VOTE_BYTES * _written(run, stage))


def learn_written(run: Run, stage: Stage) -> StageWork:
    """Clients learn all written questions, weighted anew after each epoch; the server the best voted."""
    options, written = run.role(stage.party), _written(run, stage)
    if stage.party == SERVER:
        update = run.method["server_update"]
        count = {"none": 0.0, "sft_top_voted": run.method["top_share"], "sft_on_slm": run.clients}[update]
        training = [run.train(options, written, count * written, run.response)] if count else []
        return StageWork([*training, run.evaluate(SERVER)], models=run.clients if count else 0)
    works = [run.train(options, written, written, run.response)]
    works += [run.read("boosting", written * options.epochs, 1)] if run.method["boosting"] else []
    return StageWork([*works, run.evaluate(stage.party)], models=1)


def answer_written(run: Run, stage: Stage) -> StageWork:
    """A client answers all written questions (``server_update: sft_on_slm``)."""
    count = _written(run, stage)
    return StageWork([("answers", run.generate(count))], texts=count)


def _per_step(run: Run) -> int:
    return int(run.method["per_step"] or max(1, run.public // (run.method["steps"] + 1)))


def _written(run: Run, stage: Stage) -> float:
    most = run.method["max_size"] or 2 * run.public
    return float(min(most, _per_step(run) * (run.method["steps"] + max(1, stage.round))))
