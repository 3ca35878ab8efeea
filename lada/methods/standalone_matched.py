"""Standalone with as many optimiser steps as a federated run (baselines, section 2a).

Without it, a federated method could win by training longer. No party sends anything.
"""

from __future__ import annotations

import math

from lada.config import Options, Positive
from lada.local import add_evaluation, measure, prepare_client, prepare_server, train_locally
from lada.manifest import Outbox
from lada.method import Step
from lada.party import MODEL_FILE, Party, model_payloads


class Config(Options):
    """Options.

    Attributes:
        steps_per_round: optimiser steps of local training in each round; None: as many as one pass of
            distillation over the whole public set takes (`training.client`), the longest federated run.
    """

    steps_per_round: Positive | None = None


def practise(party: Party) -> Outbox:
    """Go on with local training for one round's worth of steps."""
    assert isinstance(party.options, Config)
    client = party.training("client")
    whole = client.epochs * math.ceil(len(party.public) / client.batch_size)
    steps = party.options.steps_per_round or client.max_steps or whole
    local = party.training("local")
    rate = local.learning_rate * local.decay ** (party.round - 1)
    options = local.model_copy(update={"max_steps": steps, "learning_rate": rate})
    model = party.open_model()
    train_locally(party, model, options)
    outbox = Outbox()
    outbox.private[MODEL_FILE], _ = model_payloads(model, party)
    add_evaluation(outbox, measure(party, model, "after the round"), {"optimiser_steps": float(steps)})
    return outbox


STEPS = (
    Step("prepare", server=prepare_server, client=prepare_client, once=True),
    Step("practise", client=practise),
)
