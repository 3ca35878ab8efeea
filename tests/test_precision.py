"""bfloat16 where it is cheap and float32 where a number is made: what would be lost otherwise, and is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import LORA, random_pairs, tiny_model
from torch.nn import functional as F

from lada.config import TrainOptions
from lada.forward import forward_log_probs
from lada.language_model import LanguageModel
from lada.losses import PairLoss, preference_loss, response_log_probs
from lada.training import fit, sequence_log_probs, with_reference
from tests.scaled_models import write_scaled

OPTIONS = TrainOptions(learning_rate=1e-5, epochs=2, batch_size=4, micro_tokens=256)
LOSS = PairLoss()


def trained(model: LanguageModel, **changes: float) -> list[float]:
    options = OPTIONS.model_copy(update=changes)
    examples = random_pairs(8)
    known = sequence_log_probs(model, examples, micro_tokens=256, head_chunk=16)
    logs = fit(
        model, with_reference(examples, known), options, LOSS, learning_rate=options.learning_rate, seed=0
    )
    return [log.objective for log in logs]


# -- the reward's signal


Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def rows(tokens: int, seed: int, vocabulary: int = 2048, width: int = 64) -> Parts:
    """bf16 states whose logits are as large as real ones (8 to 32), a bf16 head, and targets."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=draw).bfloat16()
    head = torch.randn(vocabulary, width, generator=draw).bfloat16()
    targets = (hidden.float() @ head.float().t()).topk(2, dim=1).indices[:, 1]
    return hidden, head, targets


LogProb = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], float]


def narrow(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> float:
    """Summed log-probability with everything in the weights' precision."""
    found = F.log_softmax(hidden @ head.t(), dim=-1).gather(1, targets[:, None])[:, 0]
    total = torch.zeros((), dtype=torch.bfloat16)
    for one in found:
        total = total + one
    return float(total)


def ours(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> float:
    segment = torch.zeros(len(targets), dtype=torch.long)
    return float(response_log_probs(hidden, head, targets, segment, 1, 64))


def exact(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> float:
    found = F.log_softmax(hidden.double() @ head.double().t(), dim=-1)
    return float(found.gather(1, targets[:, None]).sum())


@pytest.mark.parametrize("tokens", [100, 300])
def test_bf16_sums_would_lose_the_reward_signal_and_ours_keep_it(tokens: int) -> None:
    """A small optimiser step moves the loss of a pair by about 0.01; that is what rewards are made of.

    The step moves the head a little towards three of the chosen response's tokens. Both sides of it are
    computed from the same bf16 states and weights: what differs is the arithmetic after them alone.
    """

    def signal(log_prob: LogProb, parts: Parts, moved: torch.Tensor) -> float:
        hidden, head, targets = parts
        reference = torch.tensor(exact(*parts), dtype=torch.float64)
        before, after = (
            preference_loss(
                torch.tensor(log_prob(hidden, one, targets), dtype=torch.float64), *[reference] * 3, 0.1
            )
            for one in (head, moved)
        )
        return float(before - after)

    truth, lost, kept, sums = [], [], [], []
    for seed in range(12):
        parts = rows(tokens, seed)
        hidden, head, targets = parts
        moved = head.float()
        moved[targets[:3]] += 0.004 * hidden[:3].float()
        moved = moved.bfloat16()
        truth.append(signal(exact, parts, moved))
        lost.append(abs(signal(narrow, parts, moved) - truth[-1]))
        kept.append(abs(signal(ours, parts, moved) - truth[-1]))
        sums.append((abs(narrow(*parts) - exact(*parts)), abs(ours(*parts) - exact(*parts))))
    assert all(0.002 < one < 0.05 for one in truth)
    assert sum(kept) < 0.01 * sum(truth)
    assert sum(lost) > 0.5 * sum(truth), "rounding alone is about as large as the signal"
    assert max(ours_off for _, ours_off in sums) < 2e-4 < 0.1 < sum(off for off, _ in sums) / len(sums)


@pytest.mark.parametrize("architecture", ["gemma2", "llama", "qwen2", "qwen3"])
def test_log_probs_of_a_bf16_model_are_those_of_its_own_float32_logits(architecture: str) -> None:
    model = tiny_model(architecture, dtype="bfloat16", lora=LORA)
    pairs = [(e.prompt, r) for e in random_pairs(5) for r in e.responses]
    with torch.no_grad():
        found = forward_log_probs(model, pairs, head_chunk=3)
        for (prompt, response), value in zip(pairs, found.tolist(), strict=True):
            ids = torch.tensor([prompt + response])
            states = model.hidden(ids)[0, len(prompt) - 1 : -1].float()
            scores = states @ model.head_weight.float().t()
            if model.softcap is not None:
                scores = model.softcap * torch.tanh(scores / model.softcap)
            wanted = scores.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()
            assert value == pytest.approx(float(wanted), abs=0.05), "padding and kernels round states in bf16"
            assert found.dtype == torch.float32


# -- Gemma-2's cap


@pytest.mark.parametrize("model", ["google/gemma-2-2b", "google/gemma-2-27b"])
def test_the_cap_of_gemma_2_is_in_the_chunked_loss_as_in_transformers_own_logits(
    model: str, tmp_path: Path
) -> None:
    """At scores that the cap bends: without it, the sums are far off."""
    from lada.loading import load_model

    opened = load_model(write_scaled(tmp_path / "m", model, vocab_size=900))
    with torch.no_grad():
        opened.head_weight.mul_(8)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 700, (3, 40), generator=draw)
    pairs = [(tuple(row[:12]), tuple(row[12:])) for row in ids.tolist()]
    with torch.no_grad():
        raw = opened.network(input_ids=ids).logits
    assert 20 < float(raw.abs().max()) < 30.0
    wanted = raw[:, 11:-1].log_softmax(-1).gather(2, ids[:, 12:, None]).sum((1, 2))
    for chunk in (1, 7, 1000):
        found = forward_log_probs(opened, pairs, head_chunk=chunk)
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-4, atol=1e-3)
    opened.softcap = None
    assert (forward_log_probs(opened, pairs, head_chunk=7) - wanted).abs().min() > 10


# -- training


def test_full_fine_tuning_in_bf16_needs_master_weights() -> None:
    """At 1e-5 a step is below what bf16 weights can tell apart; it arrives nevertheless."""
    wide, coarse = tiny_model(), tiny_model(dtype="bfloat16")
    wide.load_state({key: value.float() for key, value in coarse.state().items()})
    first = coarse.state()
    trained(wide, learning_rate=3e-5, epochs=20)
    trained(coarse, learning_rate=3e-5, epochs=20)
    far = near = 0.0
    for key, value in coarse.state().items():
        goal = wide.state()[key]
        near += float((goal - value.float()).square().sum())
        far += float((goal - first[key].float()).square().sum())
    assert near < 0.35 * far, "what remains is rounding"

    stuck = tiny_model(dtype="bfloat16")
    plain = torch.optim.AdamW(stuck.trainable(), lr=3e-5)
    moved = total = 0
    before = stuck.state()
    for _ in range(5):
        plain.zero_grad()
        pairs = [(e.prompt, r) for e in random_pairs(4) for r in e.responses]
        forward_log_probs(stuck, pairs, head_chunk=16).sum().backward()
        plain.step()
    for key, value in stuck.state().items():
        moved += int((value != before[key]).sum())
        total += value.numel()
    assert moved < 0.2 * total, "most weights never move without them"


def test_master_weights_are_a_part_of_the_optimisers_state() -> None:
    from lada.master_weights import MasterAdamW, open_adamw

    torch.manual_seed(0)
    start = torch.randn(40).bfloat16()
    gradients = [torch.randn(40).bfloat16() for _ in range(6)]

    def run(optimiser: torch.optim.AdamW, one: torch.nn.Parameter, part: list[torch.Tensor]) -> None:
        for gradient in part:
            one.grad = gradient.clone()
            optimiser.step()

    def begin(value: torch.Tensor) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
        one = torch.nn.Parameter(value.clone())
        return one, open_adamw([one], TrainOptions(learning_rate=1e-4), 1e-4)

    one, optimiser = begin(start)
    assert isinstance(optimiser, MasterAdamW)
    run(optimiser, one, gradients)
    half, stopped = begin(start)
    run(stopped, half, gradients[:3])
    saved = stopped.state_dict()
    again, resumed = begin(half.detach())
    resumed.load_state_dict({"state": saved["state"], "param_groups": resumed.state_dict()["param_groups"]})
    run(resumed, again, gradients[3:])
    assert torch.equal(again, one)
    assert saved["state"][0]["exp_avg"].dtype == torch.float32
    wide = torch.nn.Parameter(start.float())
    assert type(open_adamw([wide], TrainOptions(learning_rate=1e-4), 1e-4)) is torch.optim.AdamW


# -- activation checkpointing


@pytest.mark.parametrize("architecture", ["gemma2", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_checkpointing_keeps_less_and_changes_no_bit(architecture: str, lora: object) -> None:
    from tiny_models import tiny_config, tiny_tokenizer

    from lada.models import build_network

    def opened(checkpointing: bool) -> LanguageModel:
        network = build_network(tiny_config(architecture, num_hidden_layers=4), seed=0)
        return LanguageModel(network, tiny_tokenizer(), lora=lora, checkpointing=checkpointing)  # type: ignore[arg-type]

    def kept(model: LanguageModel) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        model.network.train(model.checkpointing)
        pairs = [(e.prompt, e.responses[0]) for e in random_pairs(8)]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward_log_probs(model, pairs, head_chunk=16)
        model.network.eval()
        return sum(sizes.values())

    plain, lean = opened(False), opened(True)
    assert kept(lean) < 0.6 * kept(plain)
    assert trained(plain, learning_rate=1e-3) == trained(lean, learning_rate=1e-3)
    for key, value in plain.state().items():
        assert torch.equal(value, lean.state()[key]), key
    assert not lean.network.training
