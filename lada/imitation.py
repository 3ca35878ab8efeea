"""Learning other parties' texts by cross-entropy alone: FedKD, SFT, Socratic CoT (baselines, section 9f).

The contrastive counterpart is `lada.distillation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lada.answers import extract_letter
from lada.config import TrainOptions
from lada.distillation import training_metrics
from lada.language_model import LanguageModel
from lada.local import train
from lada.losses import PairLoss
from lada.manifest import Outbox
from lada.party import MODEL_FILE, Party, model_payloads
from lada.prompts import join
from lada.records import Response, SampleLog
from lada.training import Example, Term

ByPartner = Mapping[str, Mapping[str, Response]]
"""Partner -> public id -> that partner's text."""


def text_examples(party: Party, model: LanguageModel, texts: ByPartner) -> list[Example]:
    """One example per public sample, with one cross-entropy term per partner that has a text on it.

    Weights make the mean over examples the mean over partners of each partner's mean over its texts
    (baselines, section 3a, S2), also where partners lack different texts.
    """
    ids = sorted(set().union(*texts.values()))
    weights = {
        partner: len(ids) / (len(texts) * len(mine)) for partner, mine in texts.items() if len(mine) > 0
    }
    examples = []
    for name in ids:
        found = {partner: mine[name] for partner, mine in texts.items() if name in mine}
        responses = [model.response_ids(join(one.text, party.config.template)) for one in found.values()]
        examples.append(
            Example(
                id=name,
                prompt=tuple(model.prompt_ids(party.prompt(party.question(name)))),
                responses=tuple(tuple(response) for response in responses),
                terms=tuple(
                    Term(partner, chosen=place, rejected=None, weight=weights[partner])
                    for place, partner in enumerate(found)
                ),
            )
        )
    return examples


def imitate(
    party: Party, model: LanguageModel, examples: Sequence[Example], options: TrainOptions | None = None
) -> dict[str, float]:
    """Train ``model`` in place by cross-entropy at the round's learning rate; metrics of the training.

    Args:
        options: in place of the role's own (`Party.training`).
    """
    options = options or party.training(party.role)
    rate = options.learning_rate * options.decay ** (party.round - 1)
    loss = PairLoss(kind="cross_entropy")
    logs = train(party, model, examples, options, loss, name="distillation", learning_rate=rate)
    return training_metrics(examples, logs)


def publish_model(party: Party, model: LanguageModel, outbox: Outbox) -> None:
    """Keep the model, and publish its adapter: a client's to the server, the server's to all."""
    outbox.private[MODEL_FILE], published = model_payloads(model, party)
    for name, payload in published.items():
        outbox.send("server" if party.role == "client" else "all", name, payload)


def text_logs(
    party: Party, texts: ByPartner, selected_by: str, *, own: Mapping[str, Response] | None = None
) -> list[SampleLog]:
    """What the party knows of every text that it trained on, for the host's diagnostics.

    Args:
        own: id -> the party's own text, where the method has any.
    """
    found = []
    for partner, mine in texts.items():
        for name, text in sorted(mine.items()):
            options = party.question(name).options
            other = (own or {}).get(name)
            found.append(
                SampleLog(
                    id=name,
                    partner=partner,
                    selected_by=selected_by,
                    chosen=extract_letter(text.text, options),
                    rejected=None if other is None else extract_letter(other.text, options),
                    same_text=other is not None and text.text.split() == other.text.split(),
                )
            )
    return found
