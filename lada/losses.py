"""Preference loss and response log-probabilities, as functions of tensors.

The preference loss is Eq. 3 of the paper (client) and the inner term of Eq. 4 (server); log-probabilities are
sums over response tokens ("joint probabilities of reasoning paths", method section 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def preference_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """Per-pair loss of Eq. 3: -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)).

    Args:
        policy_chosen: summed log-probabilities [B] in nats; the other three alike.
        beta: strength of the tie to the reference. Choice: the paper's "MDP loss coefficient" 0.1.

    Returns:
        Losses [B] in nats, of the inputs' dtype; finite for every finite input.
    """
    ratio_chosen = policy_chosen - reference_chosen
    ratio_rejected = policy_rejected - reference_rejected
    return -F.logsigmoid(beta * (ratio_chosen - ratio_rejected))


def response_log_probs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    segment: Tensor,
    num_responses: int,
    chunk_size: int,
    softcap: float | None = None,
) -> Tensor:
    """Summed log-probability of each response, never holding more than ``chunk_size`` rows of logits.

    Logits and log-sum-exp are float32 (float64 for float64 input), whatever the weights' dtype (method,
    section 4.3); sums are float64, rounded once. With a frozen head the gradient of ``hidden`` is taken in
    the forward pass (two matrix products in all); a head that is trained (tied weights) gets its gradient
    from a second pass.

    Args:
        hidden: states [N, H] at the positions that predict ``targets``.
        lm_head_weight: output projection [V, H].
        targets: token ids [N].
        segment: response [N] that each row belongs to.
        num_responses: R; a response without rows has log-probability 0.
        chunk_size: rows of logits that exist at a time.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma-2).

    Returns:
        Log-probabilities [R] in nats.
    """
    sums = torch.zeros(num_responses, dtype=torch.float64, device=hidden.device)
    if len(targets) == 0:
        return (sums + hidden.sum()).to(_wide(hidden))  # 0, and still a part of the graph
    head: Any = _TrainedHead if lm_head_weight.requires_grad else _FrozenHead
    token_log_probs = head.apply(hidden, lm_head_weight, targets, chunk_size, softcap)
    # Added up one by one in float32, 150 tokens of 10 nats lose more than 1e-4 nats.
    return sums.index_add(0, segment, token_log_probs.double()).to(_wide(hidden))


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities [N] of targets; keeps d log-prob / d hidden instead of logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int, softcap: float | None
    ) -> Tensor:
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        log_probs = _head_pass(hidden, targets, _Projection(weight, hidden, chunk_size, softcap), slopes)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return log_probs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (grads[0][:, None] * slopes).to(slopes.dtype), None, None, None, None


class _TrainedHead(torch.autograd.Function):
    """As `_FrozenHead`, with a gradient for the weight: the backward pass computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int, softcap: float | None
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.chunk_size, ctx.softcap = chunk_size, softcap
        return _head_pass(hidden, targets, _Projection(weight, hidden, chunk_size, softcap), None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        project = _Projection(weight, hidden, ctx.chunk_size, ctx.softcap)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=_wide(hidden))
        for rows in project.chunks:
            scores = project.scores(hidden[rows])
            slope = project.soften(scores)
            _, total = _log_prob(scores, targets[rows])
            residual = _residual(scores, total, targets[rows], slope).mul_(grads[0][rows, None])
            grad_hidden[rows] = project.back(residual)
            grad_weight.addmm_(residual.t(), hidden[rows].to(residual.dtype))
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def gathered_log_probs(
    hidden: Tensor, lm_head_weight: Tensor, ids: Tensor, chunk_size: int, softcap: float | None = None
) -> Tensor:
    """Log-probabilities of several tokens per row: what sparse distillation needs of the student.

    No dense target and no more than ``chunk_size`` rows of logits ever exist; the backward pass computes the
    logits again. Precision as in `response_log_probs`.

    Args:
        hidden: states [N, H].
        lm_head_weight: output projection [V, H].
        ids: tokens [N, C]; a token may stand twice in a row.

    Returns:
        Log-probabilities [N, C] in nats, over the whole vocabulary.
    """
    found: Tensor = _GatheringHead.apply(hidden, lm_head_weight, ids, chunk_size, softcap)  # type: ignore[no-untyped-call]
    return found


def top_log_probs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    num_top: int,
    chunk_size: int,
    softcap: float | None = None,
    *,
    num_tokens: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest tokens of every row, and the log-probability of its target; no gradients.

    Args:
        hidden: states [N, H].
        lm_head_weight: output projection [V, H].
        targets: token ids [N].
        num_top: K, at most ``num_tokens``.
        num_tokens: ids from here on are padded embedding rows and never among the likeliest.

    Returns:
        Ids [N, K] and log-probabilities [N, K] from the likeliest down, log-probabilities [N] of targets.
    """
    shape = (len(targets), num_top)
    ids = torch.empty(shape, dtype=torch.long, device=hidden.device)
    best = torch.empty(shape, dtype=_wide(hidden), device=hidden.device)
    chosen = torch.empty(len(targets), dtype=_wide(hidden), device=hidden.device)
    project = _Projection(lm_head_weight, hidden, chunk_size, softcap)
    for rows in project.chunks:
        scores = project.scores(hidden[rows])
        top = scores[:, :num_tokens].topk(num_top, dim=1)
        ids[rows] = top.indices
        total = scores.logsumexp(1, keepdim=True)
        chosen[rows] = (scores.gather(1, targets[rows, None]) - total)[:, 0]
        best[rows] = top.values - total
    return ids, best, chosen


class _GatheringHead(torch.autograd.Function):
    """Log-probabilities [N, C] of tokens; the backward pass computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, chunk_size: int, softcap: float | None
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, ids)
        ctx.chunk_size, ctx.softcap = chunk_size, softcap
        project = _Projection(weight, hidden, chunk_size, softcap)
        log_probs = torch.empty(ids.shape, dtype=_wide(hidden), device=hidden.device)
        for rows in project.chunks:
            scores = project.scores(hidden[rows])
            log_probs[rows] = scores.gather(1, ids[rows]) - scores.logsumexp(1, keepdim=True)
        return log_probs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, ids = ctx.saved_tensors
        project = _Projection(weight, hidden, ctx.chunk_size, ctx.softcap)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=_wide(hidden)) if ctx.needs_input_grad[1] else None
        for rows in project.chunks:
            scores = project.scores(hidden[rows])
            slope = project.soften(scores)
            given = grads[0][rows]
            residual = scores.softmax(1).mul_(-given.sum(1, keepdim=True)).scatter_add_(1, ids[rows], given)
            if slope is not None:
                residual.mul_(slope)
            grad_hidden[rows] = project.back(residual)
            if grad_weight is not None:
                grad_weight.addmm_(residual.t(), hidden[rows].to(residual.dtype))
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


class _Projection:
    """Scores of hidden rows in float32, in one buffer that every chunk uses again."""

    def __init__(self, weight: Tensor, hidden: Tensor, chunk_size: int, softcap: float | None) -> None:
        wide = _wide(hidden)
        # Products of bfloat16 with a float32 result exist on GPUs only; a CPU widens the weight once.
        self._mixed = hidden.is_cuda and hidden.dtype != wide
        self._weight = weight.detach() if self._mixed else weight.detach().to(wide)
        starts = range(0, len(hidden), chunk_size)
        self.chunks = [slice(start, min(start + chunk_size, len(hidden))) for start in starts]
        self._buffer = torch.empty(
            min(chunk_size, len(hidden)), len(weight), dtype=wide, device=hidden.device
        )
        self._softcap = softcap

    def scores(self, rows: Tensor) -> Tensor:
        """Scores [rows, V], capped where the model has a cap."""
        scores = self._buffer[: len(rows)]
        if self._mixed:
            scores.copy_(torch.mm(rows.detach(), self._weight.t(), out_dtype=scores.dtype))
        else:
            torch.mm(rows.detach().to(scores.dtype), self._weight.t(), out=scores)
        if self._softcap is not None:
            scores.div_(self._softcap).tanh_().mul_(self._softcap)
        return scores

    def soften(self, scores: Tensor) -> Tensor | None:
        """Slope of the cap at capped ``scores``; None without a cap."""
        if self._softcap is None:
            return None
        return 1 - (scores / self._softcap).square()

    def back(self, residual: Tensor) -> Tensor:
        """Gradient [rows, H] of rows with score gradient [rows, V]."""
        return residual.to(self._weight.dtype) @ self._weight


def _head_pass(hidden: Tensor, targets: Tensor, project: _Projection, slopes: Tensor | None) -> Tensor:
    """Log-probabilities [N] of targets; fills ``slopes`` [N, H] with their gradients where it is given."""
    log_probs = torch.empty(len(targets), dtype=_wide(hidden), device=hidden.device)
    for rows in project.chunks:
        scores = project.scores(hidden[rows])
        slope = None if slopes is None else project.soften(scores)
        log_probs[rows], total = _log_prob(scores, targets[rows])
        if slopes is not None:
            slopes[rows] = project.back(_residual(scores, total, targets[rows], slope))
    return log_probs


def _log_prob(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [rows] of targets; turns ``scores`` into exp(scores - max), with their totals."""
    chosen = scores.gather(1, targets[:, None])
    top = scores.amax(1, keepdim=True)
    total = scores.sub_(top).exp_().sum(1, keepdim=True)
    return (chosen - top - total.log())[:, 0], total


def _residual(exponentials: Tensor, total: Tensor, targets: Tensor, slope: Tensor | None) -> Tensor:
    """Gradient of the log-probabilities with respect to raw scores: (one-hot - softmax) * slope, in place."""
    exponentials.div_(-total)
    exponentials.scatter_add_(1, targets[:, None], torch.ones_like(total))
    return exponentials if slope is None else exponentials.mul_(slope)


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class PairLoss:
    """What is optimised, and the plain loss that rewards are computed from.

    Attributes:
        kind: ``preference`` (Eq. 3), or ``cross_entropy``: mean token cross-entropy of the chosen text (local
            fine-tuning, and the ablation without reasoning distillation; rejected texts are ignored).
        beta: of the preference loss.
        preference_weight: multiplies the preference term (the other reading of the paper's coefficient 0.1).
        nll_weight: adds this much of the chosen text's mean token cross-entropy.
        length_norm: divides each log-ratio by the length of its response.
        label_smoothing: probability that a pair's order is wrong (conservative DPO).
    """

    kind: Literal["preference", "cross_entropy"] = "preference"
    beta: float = 0.1
    preference_weight: float = 1.0
    nll_weight: float = 0.0
    length_norm: bool = False
    label_smoothing: float = 0.0

    def __call__(
        self,
        policy: Tensor,
        reference: Tensor | None,
        lengths: Tensor,
        chosen_index: Tensor,
        rejected_index: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Objective and plain loss of T pairs over R responses.

        Args:
            policy: summed log-probabilities [R].
            reference: the same under the reference policy; not needed for cross-entropy.
            lengths: number of tokens [R].
            chosen_index, rejected_index: responses [T] of each pair.

        Returns:
            ``(objective [T], loss [T])``; the loss knows no weights, smoothing or added cross-entropy.
        """
        counts = lengths.clamp(min=1).to(policy.dtype)
        cross_entropy = -(policy / counts)[chosen_index]
        if self.kind == "cross_entropy":
            return cross_entropy, cross_entropy
        assert reference is not None and rejected_index is not None, "a preference needs two sides"
        ratios = policy - reference
        if self.length_norm:
            ratios = ratios / counts
        chosen, rejected = ratios[chosen_index], ratios[rejected_index]
        zero = torch.zeros_like(chosen)
        loss = preference_loss(chosen, rejected, zero, zero, self.beta)
        smoothed = loss
        if self.label_smoothing:
            flipped = preference_loss(rejected, chosen, zero, zero, self.beta)
            smoothed = (1 - self.label_smoothing) * loss + self.label_smoothing * flipped
        return self.preference_weight * smoothed + self.nll_weight * cross_entropy, loss


@dataclass(frozen=True, kw_only=True)
class SoftLoss:
    """Cross-entropy on a text and sparse knowledge distillation on its rows (baselines, section 4 D).

    L = hard_weight * mean over all texts of the token cross-entropy + (1 - hard_weight) * mean over the texts
    with knowledge of (1 / #rows) * sum over rows of H(q, p). Choice: H(q, p), not KL(q || p): the gradient is
    the same.

    Attributes:
        kind: ``soft``.
        hard_weight: FedMKT's lambda (kd_alpha).
        restricted: p is taken over a row's own tokens (the option letters) instead of the vocabulary.
    """

    kind: Literal["soft"] = "soft"
    hard_weight: float = 0.9
    restricted: bool = False

    def __call__(
        self, hard: Tensor, soft: Tensor, probs: Tensor, segment: Tensor, num_texts: int
    ) -> tuple[Tensor, Tensor]:
        """Both terms of every text.

        Args:
            hard: log-probabilities [N] of the tokens that stand in the texts.
            soft: log-probabilities [N, C] of the tokens that have a share of q.
            probs: q [N, C]; a row of zeros has no knowledge and does not count as a row.
            segment: text [N] of each row.
            num_texts: R.

        Returns:
            ``(cross-entropy [R], distillation [R])`` in nats; 0 for a text without rows.
        """
        if self.restricted:
            soft = soft.log_softmax(1)
        entropy = -(probs * soft).sum(1)
        known = (probs.sum(1) > 0).to(hard.dtype)
        sums = [hard.new_zeros(num_texts, dtype=torch.float64) for _ in range(4)]
        values = (-hard, torch.ones_like(hard), entropy, known)
        total, count, distilled, rows = (
            one.index_add(0, segment, value.double()) for one, value in zip(sums, values, strict=True)
        )
        wanted = hard.dtype
        return (total / count.clamp(min=1)).to(wanted), (distilled / rows.clamp(min=1)).to(wanted)
