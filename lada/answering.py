"""Reasoning texts on public questions from a party's model as it stands: what every method sends.

The prompt is `Party.prompt`, the same as in training and test, one-shot example included. A text that the
very same model state gave before to the very same request is not generated again (see `answer`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from lada.generation import generate
from lada.language_model import LanguageModel
from lada.local import expected_lengths
from lada.manifest import Outbox, Payload
from lada.party import Party, json_payload, records_payload, tensors_payload
from lada.records import Response, parse_jsonl
from lada.results import METRICS_FILE
from lada.rundir import sha256

IDS, TEXTS = "ids.jsonl", "responses.jsonl"
"""Files of a message: the public samples that the sender asks for, and texts on them."""
OWN_TEXTS = "state/own_responses.jsonl"
ORIGIN = "state/own_responses_origin.json"
"""What gave OWN_TEXTS (see `origin`), their sha256, and ids whose texts came to no end."""
LENGTHS = "state/public_lengths.json"


@dataclass
class Known:
    """What one model state has answered so far: id -> text, and ids whose texts came to no end."""

    texts: dict[str, Response] = field(default_factory=dict)
    endless: set[str] = field(default_factory=set)


def answer(
    party: Party, ids: Sequence[str], *, keep_sampled: bool = False, model: LanguageModel | None = None
) -> tuple[dict[str, Response], Outbox]:
    """Reasoning texts of the party's current model.

    A text that hit the length limit is dropped and counted, never cut (architecture, section 9).
    What this model state answered in the last stage that answered anything is not generated again, as long as
    decoding is greedy: the texts would be the same, but for what another batch may do to a tie in the last
    bits of its logits.

    Args:
        keep_sampled: reuse sampled texts too, for a method that asks for a text once and for all.
        model: in place of the party's committed one.

    Returns:
        Id -> text of those ids that came to an end, in the order of ``ids``; and an outbox that keeps all
        texts of this model state, and their lengths, as private state.
    """
    source = origin(party, model)
    sampled = party.config.generation.temperature > 0
    known = Known() if sampled and not keep_sampled else _known(party, source)
    new = [name for name in ids if name not in known.texts and name not in known.endless]
    lengths: dict[str, int] = party.latest_json(LENGTHS) or {}
    if new:
        lengths |= _generate(party, new, known, model)
    outbox = Outbox()
    texts = records_payload(list(known.texts.values()), "state")
    outbox.private[OWN_TEXTS] = texts
    outbox.private[ORIGIN] = _origin_payload(source, texts, known)
    outbox.private[LENGTHS] = json_payload(lengths, "state")
    again = "" if party.stage.step == "respond" else f"/{party.stage.step}"
    dropped = sum(name in known.endless for name in ids)
    counts = {
        f"responses{again}": float(len(ids) - dropped),
        f"responses_dropped{again}": float(dropped),
        f"responses_reused{again}": float(len(ids) - len(new)),
    }
    outbox.private[METRICS_FILE] = json_payload(counts, "metrics")
    return {name: known.texts[name] for name in ids if name in known.texts}, outbox


def origin(party: Party, model: LanguageModel | None = None) -> str:
    """Digest of what decides a text beside its question: model state, prompt form, decoding, numerics."""
    config = party.config
    state = party.model_digest if model is None else sha256(tensors_payload(model.state(), "state").data)
    request = {
        "model": [config.party(party.name).model, state],
        "prompt": [config.template, None if party.demo is None else party.demo.model_dump()],
        "generation": config.generation.model_dump(mode="json"),
        "numerics": config.numerics.model_dump(mode="json"),
        "confidence": config.exchange.publish_confidence,
    }
    return sha256(json.dumps(request, sort_keys=True).encode())


def _known(party: Party, source: str) -> Known:
    """What the party's last stage that answered anything has kept, if this very source gave it."""
    found, content = party.latest_json(ORIGIN), party.latest(OWN_TEXTS)
    if found is None or content is None or (found["origin"], found["texts"]) != (source, sha256(content)):
        return Known()
    texts = parse_jsonl(Response, content.decode(), source=OWN_TEXTS)
    return Known({text.id: text for text in texts}, set(found["endless"]))


def _origin_payload(source: str, texts: Payload, known: Known) -> Payload:
    content = {"origin": source, "texts": sha256(texts.data), "endless": sorted(known.endless)}
    return json_payload(content, "state")


def _generate(party: Party, new: Sequence[str], known: Known, model: LanguageModel | None) -> dict[str, int]:
    """Answer what is not known yet, add it to ``known``; id -> number of tokens."""
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
    for name, one in zip(new, generated, strict=True):
        if one.finished:
            confidence = one.confidence if confident else None
            known.texts[name] = Response(id=name, text=one.text, confidence=confidence)
        else:
            known.endless.add(name)
    return {name: one.num_tokens for name, one in zip(new, generated, strict=True)}
