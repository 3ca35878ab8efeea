"""Responses in, summed log-probabilities out: the only place that lays sequences out for a training pass.

Sequences of similar length share a forward pass, so little is padded; padding stands on the right, where a
causal model cannot see it, so no attention mask is needed. The head sees response positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from lada.language_model import LanguageModel
from lada.losses import gathered_log_probs, response_log_probs, top_log_probs
from lada.zero import one_pass

T = TypeVar("T")
Ids = tuple[int, ...]
Pair = tuple[Ids, Ids]
"""Token ids of a prompt and of a response."""

# Choice: what one more forward pass costs, in tokens, when sequences are cut into passes. CPU: measured, the
# step is as fast anywhere between 24 and 192 (5M and 38M parameters); GPU: an estimate.
_PASS_COST = {"cpu": 48, "cuda": 1024}
_ONE_PASS = 2**40


@one_pass
def forward_log_probs(model: LanguageModel, sequences: Sequence[Pair], *, head_chunk: int) -> Tensor:
    """Summed log-probability of each response given its prompt.

    Every response token counts, EOS if and only if it is among them; prompt tokens never count.

    Args:
        sequences: (prompt, response) token ids; prompts must not be empty, responses may be.
        head_chunk: rows of logits that exist at a time.

    Returns:
        Log-probabilities [len(sequences)] in nats, with a graph where gradients are on.
    """
    hidden, targets, segment = _rows(model, sequences)
    return model.with_head(
        response_log_probs, hidden, targets, segment, len(sequences), head_chunk, model.softcap
    )


@one_pass
def forward_gathered(
    model: LanguageModel, sequences: Sequence[Pair], ids: Sequence[Tensor], *, head_chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the response tokens and of other tokens in their places.

    Args:
        sequences: see `forward_log_probs`.
        ids: per sequence, other tokens [response length, C] to look at.
        head_chunk: rows of logits that exist at a time.

    Returns:
        Log-probabilities [N] and [N, C] in nats, and the sequence [N] that each row belongs to; the rows of
        one sequence stand together, in order.
    """
    hidden, targets, segment = _rows(model, sequences)
    order = dict.fromkeys(segment.tolist())
    wanted = torch.cat([targets[:, None], torch.cat([ids[i] for i in order]).to(targets)], dim=1)
    found = model.with_head(gathered_log_probs, hidden, wanted, head_chunk, model.softcap)
    return found[:, 0], found[:, 1:], segment


@one_pass
def forward_top(
    model: LanguageModel, sequences: Sequence[Pair], num_top: int, *, num_tokens: int, head_chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The likeliest tokens in the place of every response token; no gradients.

    Args:
        sequences: see `forward_log_probs`.
        num_top: K.
        num_tokens: size of the tokenizer; ids from here on are never among the likeliest.
        head_chunk: rows of logits that exist at a time.

    Returns:
        Ids [N, K] and log-probabilities [N, K] from the likeliest down, log-probabilities [N] of the response
        tokens, sequence [N] of each row; the rows of one sequence stand together, in order.
    """
    hidden, targets, segment = _rows(model, sequences)
    look = partial(top_log_probs, num_tokens=num_tokens)
    ids, best, chosen = model.with_head(look, hidden, targets, num_top, head_chunk, model.softcap)
    return ids, best, chosen, segment


def _rows(model: LanguageModel, sequences: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [N, H] that predict response tokens, those tokens [N], and their sequences [N]."""
    assert all(prompt for prompt, _ in sequences), "a response needs a prompt before its first token"
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    order = sorted((i for i, (_, response) in enumerate(sequences) if response), key=lambda i: -lengths[i])
    # Choice: where a pass gathers the weights, it takes everything. All ranks must make as many passes, which
    # they agree on by groups of sequences (`micro_batches`); gathering twice costs more than the padding.
    pass_cost = _ONE_PASS if model.ranks.shards else _PASS_COST.get(model.device.type, 1024)
    states: list[Tensor] = []
    targets: list[int] = []
    segment: list[int] = []
    for first, last in cut([lengths[i] for i in order], pass_cost):
        members = order[first:last]
        states.append(_response_states(model, [sequences[i] for i in members]))
        for i in members:
            targets.extend(sequences[i][1])
            segment.extend([i] * len(sequences[i][1]))
    if not states and model.ranks.shards:
        empty = torch.full((1, 1), model.pad_id, device=model.device)
        states.append(model.hidden(empty)[0, :0])
    weight = model.head_weight
    return (
        torch.cat(states) if states else weight.new_zeros(0, weight.shape[1]),
        torch.tensor(targets, dtype=torch.long, device=model.device),
        torch.tensor(segment, dtype=torch.long, device=model.device),
    )


def _response_states(model: LanguageModel, sequences: Sequence[Pair]) -> Tensor:
    """Hidden states [sum of response lengths, H] that predict the response tokens, sequence by sequence."""
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    ids = torch.full((len(sequences), width), model.pad_id, dtype=torch.long)
    positions: list[int] = []
    for row, (prompt, response) in enumerate(sequences):
        ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        start = row * width + len(prompt) - 1
        positions.extend(range(start, start + len(response)))
    hidden = model.hidden(ids.to(model.device)).flatten(0, 1)
    return hidden.index_select(0, torch.tensor(positions, device=model.device))


def cut(lengths: Sequence[int], pass_cost: int) -> list[tuple[int, int]]:
    """Cut descending ``lengths`` into runs that are padded to their first, at the least total cost.

    The cost of a run is its padded tokens plus ``pass_cost``.

    Returns:
        ``(first, last + 1)`` of each run.
    """
    best = [0.0]
    starts = []
    for end in range(1, len(lengths) + 1):
        costs = [best[first] + (end - first) * lengths[first] + pass_cost for first in range(end)]
        starts.append(min(range(end), key=costs.__getitem__))
        best.append(costs[starts[-1]])
    runs = []
    end = len(lengths)
    while end:
        runs.append((starts[end - 1], end))
        end = starts[end - 1]
    return runs[::-1]


def micro_batches(
    model: LanguageModel, items: Sequence[T], lengths: Sequence[Sequence[int]], limit: int
) -> list[list[T]]:
    """Consecutive groups of items whose sequences are computed together: at most ``limit`` tokens each.

    Where ranks share the weights, a group is one pass, and what it is padded with counts too. Elsewhere its
    sequences are cut into passes by length, which leaves so little padding that it is not counted.

    Args:
        lengths: tokens of each sequence of each item; items whose longest sequences are alike should stand
            together.
        limit: an item that is larger is a group by itself.
    """
    groups: list[list[T]] = []
    rows = longest = total = 0
    for item, own in zip(items, lengths, strict=True):
        rows, longest, total = rows + len(own), max([longest, *own]), total + sum(own)
        if not groups or (rows * longest if model.ranks.shards else total) > limit:
            groups.append([])
            rows, longest, total = len(own), max(own, default=0), sum(own)
        groups[-1].append(item)
    return groups
