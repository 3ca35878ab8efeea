from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from lada import losses
from lada.losses import PairLoss, preference_loss, response_log_probs


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def at(margin: float, beta: float) -> float:
    zero = torch.zeros(1, dtype=torch.float64)
    return float(preference_loss(torch.tensor([margin], dtype=torch.float64), zero, zero, zero, beta))


@pytest.mark.parametrize(
    ("margin", "expected"), [(0.0, 0.693147), (1.0, 0.644397), (-1.0, 0.744397), (10.0, 0.313262)]
)
def test_known_values_at_beta_one_tenth(margin: float, expected: float) -> None:
    assert at(margin, 0.1) == pytest.approx(expected, abs=1e-6)


def test_policy_equal_to_reference_gives_exactly_log_two() -> None:
    chosen, rejected = normal(5, seed=1) * 100, normal(5, seed=2) * 100
    loss = preference_loss(chosen, rejected, chosen, rejected, 0.1)
    assert torch.equal(loss, -F.logsigmoid(torch.zeros(5, dtype=torch.float64)))
    assert loss[0].exp() == pytest.approx(2)


def test_swapping_sides_turns_the_margin_round() -> None:
    four = [normal(6, seed=i) for i in range(4)]
    forward = preference_loss(*four, 0.5)
    backward = preference_loss(four[1], four[0], four[3], four[2], 0.5)
    margin = 0.5 * ((four[0] - four[2]) - (four[1] - four[3]))
    torch.testing.assert_close(forward - backward, -margin)


def test_gradient_is_antisymmetric_at_zero_margin() -> None:
    chosen, rejected = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    zero = torch.zeros(1, dtype=torch.float64)
    preference_loss(chosen, rejected, zero, zero, 0.1).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert float(chosen.grad) == pytest.approx(-0.05)
    assert float(rejected.grad) == -float(chosen.grad)


def test_limits_of_beta_and_of_the_margin() -> None:
    assert at(3.0, 1e-9) == pytest.approx(math.log(2))
    assert at(1e6, 0.1) == 0.0
    assert at(-1e6, 0.1) == pytest.approx(1e5)
    huge = torch.tensor([1e30], requires_grad=True)
    zero = torch.zeros(1)
    loss = preference_loss(zero, huge, zero, zero, 0.1)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert huge.grad is not None
    assert float(huge.grad) == pytest.approx(0.1)


def test_dtype_is_kept() -> None:
    for dtype in (torch.float32, torch.float64):
        zero = torch.zeros(2, dtype=dtype)
        assert preference_loss(zero, zero, zero, zero, 0.1).dtype == dtype


ROWS, WIDTH, VOCAB, RESPONSES = 23, 6, 17, 4


def rows(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Hidden states, head, targets and segments; response 2 is empty and rows are not in order."""
    generator = torch.Generator().manual_seed(3)
    hidden = normal(ROWS, WIDTH, seed=4, dtype=dtype) * 3
    weight = normal(VOCAB, WIDTH, seed=5, dtype=dtype) * 4
    targets = torch.randint(VOCAB, (ROWS,), generator=generator)
    segment = torch.tensor([0, 1, 3])[torch.randint(3, (ROWS,), generator=generator)]
    return hidden, weight, targets, segment


def naive(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    segment: torch.Tensor,
    cap: float | None,
) -> torch.Tensor:
    logits = hidden @ weight.t()
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    chosen = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return torch.stack([chosen[segment == i].sum() for i in range(RESPONSES)])


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("chunk", [1, 7, 64, 10**6])
def test_chunked_head_equals_log_softmax(chunk: int, cap: float | None, trained: bool) -> None:
    hidden, weight, targets, segment = rows()
    factors = torch.tensor([0.3, -1.0, 2.0, 0.7])
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)]
    found = response_log_probs(ours[0], ours[1], targets, segment, RESPONSES, chunk, cap)
    expected = naive(theirs[0], theirs[1], targets, segment, cap)
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert found[2] == 0
    assert ours[0].grad is not None
    torch.testing.assert_close(ours[0].grad, theirs[0].grad, rtol=1e-4, atol=1e-5)
    if trained:
        assert ours[1].grad is not None
        torch.testing.assert_close(ours[1].grad, theirs[1].grad, rtol=1e-4, atol=1e-5)


def test_order_of_rows_does_not_matter() -> None:
    hidden, weight, targets, segment = rows(torch.float64)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(9))
    first = response_log_probs(hidden, weight, targets, segment, RESPONSES, 7)
    second = response_log_probs(hidden[order], weight, targets[order], segment[order], RESPONSES, 7)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("trained", [False, True])
def test_finite_differences_of_the_head(trained: bool, cap: float | None) -> None:
    hidden, weight, targets, segment = rows(torch.float64)
    hidden.requires_grad_()
    weight.requires_grad_(trained)

    def function(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return response_log_probs(h, w, targets, segment, RESPONSES, 7, cap)

    assert torch.autograd.gradcheck(function, (hidden, weight))


def test_the_soft_cap_changes_values() -> None:
    hidden, weight, targets, segment = rows()
    plain = response_log_probs(hidden, weight, targets, segment, RESPONSES, 7)
    capped = response_log_probs(hidden, weight, targets, segment, RESPONSES, 7, 30.0)
    assert (plain - capped).abs().max() > 0.1


def test_long_sums_are_rounded_once() -> None:
    """Ten thousand equal terms: float32 addition one by one would drift far from their product."""
    count = 10_000
    hidden, weight = torch.ones(count, 1), torch.tensor([[0.0], [0.1], [0.3]])
    zero = torch.zeros(count, dtype=torch.long)
    found = response_log_probs(hidden, weight, zero, zero, 1, 64)
    one = response_log_probs(hidden[:1], weight, zero[:1], zero[:1], 1, 64).double()
    assert found.item() == pytest.approx((count * one).item(), rel=1e-7)


def test_no_rows_at_all() -> None:
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.long)
    found = response_log_probs(hidden, torch.ones(VOCAB, WIDTH), empty, empty, 2, 7)
    found.sum().backward()
    assert found.tolist() == [0, 0]


def test_never_more_logits_than_a_chunk() -> None:
    seen = []
    original = losses._Projection.scores

    def spy(self: losses._Projection, part: torch.Tensor) -> torch.Tensor:
        scores = original(self, part)
        seen.append(tuple(scores.shape))
        return scores

    with mock.patch.object(losses._Projection, "scores", spy):
        response_log_probs(*rows(), RESPONSES, 7)
    assert seen == [(7, VOCAB)] * 3 + [(2, VOCAB)]


def test_bfloat16_weights_give_float32_sums() -> None:
    hidden, weight, targets, segment = rows(torch.bfloat16)
    found = response_log_probs(hidden.requires_grad_(), weight, targets, segment, RESPONSES, 7)
    expected = naive(hidden.detach().float(), weight.float(), targets, segment, None)
    found.sum().backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-4)
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


POLICY = torch.tensor([-3.0, -5.0, -4.0], dtype=torch.float64)
REFERENCE = torch.tensor([-3.5, -4.0, -4.0], dtype=torch.float64)
LENGTHS = torch.tensor([2, 4, 0])
CHOSEN, REJECTED = torch.tensor([0, 1]), torch.tensor([1, 2])
MARGINS = torch.tensor([1.5, -1.0], dtype=torch.float64)


def softplus(x: torch.Tensor) -> torch.Tensor:
    return torch.log1p(x.exp())


def test_pair_loss_is_the_preference_loss() -> None:
    objective, loss = PairLoss(beta=0.2)(POLICY, REFERENCE, LENGTHS, CHOSEN, REJECTED)
    torch.testing.assert_close(loss, softplus(-0.2 * MARGINS))
    assert torch.equal(objective, loss)


def test_smoothing_and_weights_change_the_objective_alone() -> None:
    plain = softplus(-0.1 * MARGINS)
    loss = PairLoss(label_smoothing=0.2, preference_weight=0.5, nll_weight=2.0)
    objective, kept = loss(POLICY, REFERENCE, LENGTHS, CHOSEN, REJECTED)
    torch.testing.assert_close(kept, plain)
    smoothed = 0.8 * plain + 0.2 * softplus(0.1 * MARGINS)
    expected = 0.5 * smoothed + 2.0 * torch.tensor([1.5, 1.25], dtype=torch.float64)
    torch.testing.assert_close(objective, expected)


def test_length_norm_divides_each_side_by_its_own_length() -> None:
    _, loss = PairLoss(length_norm=True)(POLICY, REFERENCE, LENGTHS, CHOSEN, REJECTED)
    margins = torch.tensor([0.25 + 0.25, -0.25 - 0.0], dtype=torch.float64)
    torch.testing.assert_close(loss, softplus(-0.1 * margins))


def test_cross_entropy_is_the_mean_over_tokens_of_the_chosen_text() -> None:
    objective, loss = PairLoss(kind="cross_entropy")(POLICY, None, LENGTHS, CHOSEN, None)
    assert loss.tolist() == [1.5, 1.25]
    assert torch.equal(objective, loss)
