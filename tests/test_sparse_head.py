"""Sparse distillation against dense arithmetic: values, gradients, whole training steps."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch

from lada import losses
from lada.config import LoraOptions, TrainOptions
from lada.errors import ModelError
from lada.forward import forward_gathered, forward_log_probs, forward_top
from lada.knowledge import letter_knowledge, received, top_knowledge
from lada.language_model import LanguageModel
from lada.losses import SoftLoss, gathered_log_probs, top_log_probs
from lada.payloads import Origin
from lada.soft_targets import SoftTargets
from lada.training import Example, Term, fit
from lada.training_state import StepLog
from tests.test_losses import VOCAB, rows
from tests.tiny_models import EOS, LORA, random_ids, tiny_model

BOTH = pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])


def some_ids(width: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    found = torch.randint(VOCAB, (23, width), generator=generator)
    found[:, -1] = found[:, 0]  # a token may stand twice
    return found


def naive(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, cap: float | None) -> torch.Tensor:
    logits = hidden @ weight.t()
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits.log_softmax(-1).gather(1, ids)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_gathered_log_probs_equal_dense_ones(chunk: int, cap: float | None, trained: bool) -> None:
    hidden, weight, _, _ = rows()
    ids = some_ids()
    factors = torch.randn(ids.shape, generator=torch.Generator().manual_seed(1))
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)]
    found = gathered_log_probs(ours[0], ours[1], ids, chunk, cap)
    expected = naive(theirs[0], theirs[1], ids, cap)
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(ours[0].grad, theirs[0].grad, rtol=1e-4, atol=1e-4)
    if trained:
        torch.testing.assert_close(ours[1].grad, theirs[1].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cap", [None, 30.0])
def test_finite_differences(cap: float | None) -> None:
    hidden, weight, _, _ = rows(torch.float64)
    hidden.requires_grad_()
    weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, w: gathered_log_probs(h, w, some_ids(), 7, cap), (hidden, weight)
    )


def test_bfloat16_states_give_float32_log_probs() -> None:
    hidden, weight, _, _ = rows(torch.bfloat16)
    found = gathered_log_probs(hidden.requires_grad_(), weight, some_ids(), 7)
    found.sum().backward()
    expected = naive(hidden.detach().float(), weight.float(), some_ids(), None)
    assert found.dtype == torch.float32 and hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-4)


def test_never_more_logits_than_a_chunk() -> None:
    """Pitfall 9: no dense targets, no dense logits, neither forward nor backward."""
    seen = []
    original = losses._Projection.scores

    def spy(self: losses._Projection, part: torch.Tensor) -> torch.Tensor:
        scores = original(self, part)
        seen.append(len(scores))
        return scores

    hidden, weight, targets, _ = rows()
    with mock.patch.object(losses._Projection, "scores", spy):
        gathered_log_probs(hidden.requires_grad_(), weight, some_ids(), 7).sum().backward()
        top_log_probs(hidden.detach(), weight, targets, 3, 7, num_tokens=VOCAB)
    assert max(seen) == 7 and len(seen) == 3 * 4


@pytest.mark.parametrize("cap", [None, 30.0])
def test_the_likeliest_tokens_leave_out_padded_embedding_rows(cap: float | None) -> None:
    """Pitfall 7: they may hold the largest logit, but nobody can read them."""
    hidden, weight, targets, _ = rows()
    weight[-1] = 10 * hidden[0]
    ids, best, chosen = top_log_probs(hidden, weight, targets, 4, 7, cap, num_tokens=VOCAB - 1)
    dense = naive(hidden, weight, torch.arange(VOCAB).expand(23, -1), cap)
    expected = dense[:, :-1].topk(4, dim=1)
    assert torch.equal(ids, expected.indices)
    torch.testing.assert_close(best, expected.values, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(chosen, dense.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-4)


# -- the loss


def test_the_soft_loss_by_hand() -> None:
    """Two texts, of two rows and of one: means over rows with knowledge, then as weighted outside."""
    hard = torch.tensor([-1.0, -3.0, -2.0])
    soft = torch.tensor([[-1.0, -2.0], [-0.5, -4.0], [-3.0, -1.0]])
    probs = torch.tensor([[0.75, 0.25], [0.0, 0.0], [0.5, 0.5]])
    text, knowledge = SoftLoss()(hard, soft, probs, torch.tensor([0, 0, 1]), 3)
    assert text.tolist() == [2.0, 2.0, 0.0]
    assert knowledge.tolist() == [1.25, 2.0, 0.0]


def test_restricted_to_the_letters_it_is_exact() -> None:
    """Over A to D alone: the mass on other tokens does not matter."""
    soft = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    q = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    segment = torch.zeros(1, dtype=torch.long)
    loss = SoftLoss(restricted=True)
    _, one = loss(torch.zeros(1), soft, q, segment, 1)
    _, other = loss(torch.zeros(1), soft - 5, q, segment, 1)
    assert one.item() == pytest.approx(other.item(), abs=1e-6)
    assert one.item() == pytest.approx(-(q * soft.log_softmax(1)).sum().item(), abs=1e-6)


def example(
    name: str, prompt: tuple[int, ...], response: tuple[int, ...], seed: int, weight: float
) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(64, (len(response), 3), generator=generator)
    probs = torch.rand(len(response), 3, generator=generator).softmax(1)
    probs[::3] = 0
    terms = (Term("text", 0, None), Term("knowledge", 0, None))
    return Example(name, prompt, (response,), terms, soft=SoftTargets(ids, probs, weight))


def examples(count: int = 6) -> list[Example]:
    import random

    draw = random.Random(3)
    return [
        example(
            f"q{i}", (1, *random_ids(draw, 3, 12)), (*random_ids(draw, 1, 12), EOS), i, [1.0, 0.0, 2.0][i % 3]
        )
        for i in range(count)
    ]


def dense_objective(model: LanguageModel, batch: list[Example], hard_weight: float) -> torch.Tensor:
    """The objective from whole logits and dense targets, one text at a time."""
    total = torch.zeros(())
    for one in batch:
        assert one.soft is not None
        (response,) = one.responses
        logits = model.network(input_ids=torch.tensor([one.prompt + response])).logits[0].float()
        log_probs = logits.log_softmax(-1)[len(one.prompt) - 1 : -1]
        q = torch.zeros_like(log_probs).scatter_add(1, one.soft.ids, one.soft.probs)
        known = max(1, int((q.sum(1) > 0).sum()))
        ce = -log_probs.gather(1, torch.tensor(response)[:, None]).mean()
        kd = -(q * log_probs).sum() / known
        total = total + hard_weight * ce + (1 - hard_weight) * one.soft.weight * kd
    return total / len(batch)


def train(model: LanguageModel, batch: list[Example], **changes) -> list[StepLog]:  # type: ignore[no-untyped-def]
    options = TrainOptions(**({"learning_rate": 1e-2, "batch_size": len(batch)} | changes))
    return fit(model, batch, options, SoftLoss(hard_weight=0.9), learning_rate=1e-2, seed=5, head_chunk=7)


@BOTH
@pytest.mark.parametrize("micro_tokens", [1, 60, 10**6])
def test_a_training_step_equals_a_dense_one(lora: LoraOptions | None, micro_tokens: int) -> None:
    ours, theirs = tiny_model("gemma2", lora=lora), tiny_model("gemma2", lora=lora)
    batch = examples()
    expected = dense_objective(theirs, batch, 0.9)
    expected.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.trainable(), 1.0)
    optimiser = torch.optim.AdamW(theirs.trainable(), lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    optimiser.step()
    (log,) = train(ours, batch, micro_tokens=micro_tokens)
    assert log.objective == pytest.approx(expected.item(), abs=1e-5)
    assert log.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    for key, value in ours.state().items():
        torch.testing.assert_close(value, theirs.state()[key], rtol=1e-3, atol=1e-4)


def test_both_terms_are_logged_and_the_second_only_where_it_counts() -> None:
    (log,) = train(tiny_model(), examples())
    assert {entry.id for entry in log.losses if entry.partner == "text"} == {f"q{i}" for i in range(6)}
    assert {entry.id for entry in log.losses if entry.partner == "knowledge"} == {"q0", "q2", "q3", "q5"}


def test_training_lowers_both_terms() -> None:
    logs = train(tiny_model(), examples(3), epochs=40)
    for term in ("text", "knowledge"):
        first, last = (
            sum(entry.loss for entry in log.losses if entry.partner == term) for log in (logs[0], logs[-1])
        )
        assert last < 0.8 * first


def test_training_that_leaves_the_finite_numbers_names_samples() -> None:
    batch = examples()
    assert batch[2].soft is not None
    batch[2].soft.probs[1] = math.nan
    with pytest.raises(ModelError, match="q2"):
        train(tiny_model(), batch)


# -- forward passes and knowledge


def pairs() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(one.prompt, one.responses[0]) for one in examples()]


@pytest.mark.parametrize("architecture", ["gemma2", "llama", "qwen2", "qwen3"])
def test_passes_equal_whole_logits_and_each_other(architecture: str) -> None:
    model = tiny_model(architecture)
    with torch.no_grad():
        ids, best, chosen, segment = forward_top(model, pairs(), 5, num_tokens=60, head_chunk=7)
        hard, others, again = forward_gathered(
            model, pairs(), [torch.zeros(len(r), 2, dtype=torch.long) for _, r in pairs()], head_chunk=7
        )
        sums = forward_log_probs(model, pairs(), head_chunk=7)
        for place, (prompt, response) in enumerate(pairs()):
            logits = model.network(input_ids=torch.tensor([prompt + response])).logits[0].float()
            dense = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            mine = segment == place
            expected = dense[:, :60].topk(5, dim=1)
            assert torch.equal(ids[mine], expected.indices)
            torch.testing.assert_close(best[mine], expected.values, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(others[mine], dense[:, [0, 0]], rtol=1e-4, atol=1e-4)
            assert chosen[mine].sum().item() == pytest.approx(sums[place].item(), abs=1e-4)
    assert torch.equal(segment, again)
    torch.testing.assert_close(chosen, hard)


SIZES = {"micro_tokens": 40, "head_chunk": 7}


def test_knowledge_of_rows() -> None:
    model, batch = tiny_model(), examples()
    found = top_knowledge(model, batch, [3] * 6, num_top=4, num_tokens=64, **SIZES)
    assert found.ids is not None
    assert found.logits.dtype == "float16" and found.ids.dtype == "int32" and found.ce.dtype == "float32"
    assert (found.logits <= 0).all() and (found.logits[:, 0] == 0).all()
    for place, one in enumerate(batch):
        with torch.no_grad():
            (total,) = forward_log_probs(model, [(one.prompt, one.responses[0])], head_chunk=7).tolist()
        assert found.ce[place] == pytest.approx(-total / 3, abs=1e-5)
        ids, logits = found.rows(place)
        assert ids is not None and ids.shape == logits.shape == (len(one.responses[0]), 4)
    shuffled = top_knowledge(model, batch[::-1], [3] * 6, num_top=4, num_tokens=64, **SIZES)
    assert shuffled.ce.tolist()[::-1] == found.ce.tolist()


def test_cross_entropy_is_per_character_and_free_of_the_prompt() -> None:
    """Pitfalls 3 and 4: not divided by prompt tokens, nor by tokens at all; nothing after the last token."""
    model = tiny_model()
    short = Example("a", (1, 9), ((5, 6, EOS),), ())
    found = top_knowledge(model, [short], [10], num_top=2, num_tokens=64, **SIZES)
    with torch.no_grad():
        total = forward_log_probs(model, [((1, 9), (5, 6, EOS))], head_chunk=7)
    assert found.ce[0] == pytest.approx(-total.item() / 10, abs=1e-6)
    assert found.lengths == (3,) == (len(found.logits),)


def test_knowledge_of_letters_is_four_logits_and_the_labels_cross_entropy() -> None:
    model = tiny_model()
    batch = [Example(f"q{i}", (1, 9 + i), ((20 + i,),), ()) for i in range(4)]
    found = letter_knowledge(model, batch, (20, 21, 22, 23), **SIZES)
    assert found.ids is None and found.logits.shape == (4, 4) and set(found.tensors()) == {"ce", "logits"}
    with torch.no_grad():
        for place, one in enumerate(batch):
            dense = model.network(input_ids=torch.tensor([one.prompt])).logits[0, -1].float().log_softmax(-1)
            assert found.ce[place] == pytest.approx(-dense[20 + place].item(), abs=1e-5)
            relative = dense[20:24] - dense[20:24].max()
            assert found.logits[place].tolist() == pytest.approx(relative.tolist(), abs=3e-3)


def test_broken_weights_are_found_before_anything_is_sent() -> None:
    """Pitfall 12: users of FATE-LLM saw NaN logits; here the stage ends with the samples' names."""
    model = tiny_model()
    with torch.no_grad():
        model.head_weight[40:] = math.nan
    with pytest.raises(ModelError, match="not finite numbers, at samples q0"):
        top_knowledge(model, examples(2), [3] * 2, num_top=4, num_tokens=64, **SIZES)


ORIGIN = Origin("client-1", "r01-share", "logits.safetensors")


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("item-count", {"lengths": [1, 2, 4]}),
        ("item-count", {"lengths": [1, 2]}),
        ("token-ids", {"num_tokens": 10}),
        ("tensor-keys", {"drop": "ids"}),
        ("tensor-schema", {"num_tokens": None}),
    ],
)
def test_knowledge_that_cannot_be_about_the_texts_is_refused(check: str, changes: dict) -> None:  # type: ignore[type-arg]
    batch = [Example(f"q{i}", (1, 9), (tuple(range(40, 41 + i)),), ()) for i in range(3)]
    known = top_knowledge(tiny_model(), batch, [1] * 3, num_top=5, num_tokens=64, **SIZES)
    arrays = {name: tensor.numpy() for name, tensor in known.tensors().items()}
    whole = received(arrays, [1, 2, 3], num_tokens=64, origin=ORIGIN)
    assert whole.lengths == known.lengths and (whole.logits == known.logits).all()
    arrays.pop(changes.pop("drop", "none"), None)
    given = {"lengths": [1, 2, 3], "num_tokens": 64} | changes
    with pytest.raises(Exception, match=f"client-1/r01-share/logits.safetensors: check '{check}'"):
        received(arrays, given["lengths"], num_tokens=given["num_tokens"], origin=ORIGIN)
