"""Reasoning texts on public questions from a party's model as it stands: what every method sends.

The prompt is `Party.prompt`, the same as in training and test, one-shot example included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lada.exchange import Outbox
from lada.generation import generate
from lada.local import expected_lengths
from lada.models import LanguageModel
from lada.party import Party, json_payload, records_payload
from lada.records import Response
from lada.results import METRICS_FILE

IDS, TEXTS = "ids.jsonl", "responses.jsonl"
"""Files of a message: the public samples that the sender asks for, and texts on them."""
OWN_TEXTS = "state/own_responses.jsonl"
LENGTHS = "state/public_lengths.json"


def answer(
    party: Party,
    ids: Sequence[str],
    *,
    known: Mapping[str, Response] | None = None,
    model: LanguageModel | None = None,
) -> tuple[dict[str, Response], Outbox]:
    """Generate reasoning texts with the party's current model.

    A text that hit the length limit is dropped and counted, never cut (architecture, section 9).

    Args:
        model: in place of the party's committed one.
        known: id -> text that this very model state gave before: these are not generated again.

    Returns:
        Id -> text, ``known`` ones among them, and an outbox that keeps the texts and their lengths as private
        state.
    """
    known = known or {}
    new = [name for name in ids if name not in known]
    confident = party.config.exchange.publish_confidence
    tick = party.reporter.phase("answers", len(new))
    generated = generate(
        party.open_model() if model is None else model,
        [party.prompt(party.question(name)) for name in new],
        party.config.generation,
        seed=party.seed("answers"),
        expected_lengths=expected_lengths(party, LENGTHS, new),
        progress=lambda done, total: tick(done, ""),
        resume=party.resume,
    )
    texts = dict(known) | {
        name: Response(id=name, text=one.text, confidence=one.confidence if confident else None)
        for name, one in zip(new, generated, strict=True)
        if one.finished
    }
    lengths = party.latest_json(LENGTHS) or {}
    lengths |= {name: one.num_tokens for name, one in zip(new, generated, strict=True)}
    outbox = Outbox()
    outbox.private[OWN_TEXTS] = records_payload(list(texts.values()), "state")
    outbox.private[LENGTHS] = json_payload(lengths, "state")
    again = "" if party.stage.step == "respond" else f"/{party.stage.step}"
    dropped = sum(not one.finished for one in generated)
    counts = {
        f"responses{again}": float(len(ids) - dropped),
        f"responses_dropped{again}": float(dropped),
    }
    outbox.private[METRICS_FILE] = json_payload(counts, "metrics")
    return texts, outbox
