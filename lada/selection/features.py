"""What a filter sees of a sample before any response to it exists: the prompt, as the party's model reads it.

Prompt features are pooled hidden states of the current model (method page, 3.1); history features are what
the pair learned about the sample in earlier rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from torch import Tensor
from torch.nn.functional import layer_norm

from lada.config import Options, Positive
from lada.language_model import LanguageModel
from lada.ranks import bundles, each
from lada.resume import Resume, Saved, begin
from lada.zero import one_pass

Array = NDArray[np.float32]
TFIDF_SIZE = 512


class FeatureOptions(Options):
    """Which features.

    Attributes:
        encoder: ``hidden`` states of the party's model, or ``tfidf`` of the words (no model needed).
        num_layers: layers pooled, evenly spaced and with the last.
        history: add the pair's history with the sample.
        sender_confidence: add the other party's token confidence where it is known (an addition to the
            paper; needs ``exchange.publish_confidence``).
    """

    encoder: Literal["hidden", "tfidf"] = "hidden"
    num_layers: Positive = 4
    history: bool = False
    sender_confidence: bool = False


def prompt_features(
    model: LanguageModel,
    prompts: Sequence[str],
    options: FeatureOptions,
    *,
    micro_tokens: int = 8192,
    resume: Resume | None = None,
) -> Array:
    """Features of prompts, float32 [N, num_layers * H] (or [N, 512] for ``tfidf``), rows as ``prompts``.

    Hidden states after each chosen layer, averaged over the prompt's tokens, each layer then scaled to mean
    0 and variance 1 over its H values. Micro-batches are formed by length and text, so a row does not
    depend on the order of ``prompts`` and on its neighbours only in the last bits.

    Args:
        micro_tokens: most padded tokens of one forward pass.
        resume: may pause this after any pass and go on there.
    """
    if options.encoder == "tfidf":
        return _tfidf(prompts)
    rows = [model.prompt_ids(prompt) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), prompts[i]))
    phase = begin(resume, "prompt_features", prompts, options, micro_tokens)
    saved = phase.result or phase.point
    pooled: list[Tensor] = [] if saved is None else list(saved.tensors["pooled"])

    def state() -> Saved:
        return Saved({"pooled": torch.stack(pooled)}, None)

    was_training = model.network.training
    model.network.eval()
    try:
        with torch.no_grad():
            batches = list(_micro_batches(order[len(pooled) :], rows, micro_tokens))
            for shares in bundles(batches, model.ranks.size):
                inputs = [[rows[i] for i in batch] for batch in shares]
                for found in model.ranks.call(each, model, _pooled, inputs, options.num_layers):
                    pooled.extend(found)
                phase.safe_point(state)
    finally:
        model.network.train(was_training)
    phase.finish(state)
    found = dict(zip(order, pooled, strict=True))
    return np.asarray(torch.stack([found[i] for i in range(len(rows))]).numpy(), dtype=np.float32)


@one_pass
def _pooled(model: LanguageModel, rows: Sequence[Sequence[int]], num_layers: int) -> Tensor:
    """[B, L * H] on the CPU, of token ids padded on the right."""
    longest = max(map(len, rows))
    padded = [[*row, *[model.pad_id] * (longest - len(row))] for row in rows]
    ids = torch.tensor(padded, device=model.device)
    mask = torch.tensor([[i < len(row) for i in range(longest)] for row in rows], device=model.device)
    layers = model.hidden_layers(ids, mask.long())
    weights = (mask / mask.sum(dim=1, keepdim=True)).unsqueeze(-1)
    chosen = [layers[i].float() for i in spaced(len(layers), num_layers)]
    # Padded positions may hold anything, also what is not a number.
    means = [(states.masked_fill(~mask.unsqueeze(-1), 0.0) * weights).sum(dim=1) for states in chosen]
    return torch.cat([layer_norm(mean, mean.shape[-1:]) for mean in means], dim=-1).cpu()


def spaced(depth: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` layers out of ``depth``, evenly spaced, the last among them."""
    count = min(depth, wanted)
    return [(i + 1) * depth // count - 1 for i in range(count)]


def _micro_batches(
    order: Sequence[int], rows: Sequence[Sequence[int]], micro_tokens: int
) -> Iterator[list[int]]:
    """Indices in ``order`` (by rising length), so many that the padded batch stays within bounds."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(rows[i]) > micro_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _tfidf(prompts: Sequence[str]) -> Array:
    counts = HashingVectorizer(n_features=TFIDF_SIZE, alternate_sign=False, norm=None).transform(prompts)
    return np.asarray(TfidfTransformer().fit_transform(counts).toarray(), dtype=np.float32)


# -- history


@dataclass(frozen=True)
class SampleHistory:
    """What a pair knows of a sample that it trained on before.

    Attributes:
        loss, margin: the preference loss and its z, when last seen.
        chosen_tokens, rejected_tokens: lengths of the two texts.
        rounds_since: rounds since the sample was last selected.
        confidence: the sender's mean token log-probability (nats), None where it was not sent.
    """

    loss: float
    margin: float
    chosen_tokens: int
    rejected_tokens: int
    rounds_since: int
    confidence: float | None = None


def history_features(
    ids: Sequence[str], history: Mapping[str, SampleHistory], options: FeatureOptions
) -> Array:
    """Features of the pair's history, float32 [N, h], to stand beside the prompt's; rows as ``ids``.

    h is 6 with ``history`` (seen, loss and margin clipped at 10, log lengths, rounds since), plus 2 with
    ``sender_confidence`` (value, known). A sample without history is all zeros.
    """
    found = np.zeros((len(ids), 6 * options.history + 2 * options.sender_confidence), dtype=np.float32)
    for row, key in zip(found, ids, strict=True):
        past = history.get(key)
        if past is None:
            continue
        if options.history:
            row[:3] = 1.0, min(past.loss, 10.0), np.clip(past.margin, -10.0, 10.0)
            row[3:5] = np.log1p(past.chosen_tokens), np.log1p(past.rejected_tokens)
            row[5] = past.rounds_since
        if options.sender_confidence and past.confidence is not None:
            row[-2:] = past.confidence, 1.0
    return found
