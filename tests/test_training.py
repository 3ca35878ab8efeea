from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from tiny_models import ARCHITECTURES, EOS, LORA, random_ids, random_pairs, tiny_model

from lada import losses, training
from lada.config import LoraOptions, TrainOptions
from lada.errors import ModelError
from lada.forward import cut, forward_log_probs, micro_batches
from lada.language_model import LanguageModel, state_hash
from lada.losses import PairLoss
from lada.ranks import Ranks
from lada.training import Example, Hooks, Term, fit, sequence_log_probs, with_reference
from lada.training_state import StepLog

LOG_2 = math.log(2)
BOTH = pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])


def options(**changes: Any) -> TrainOptions:
    return TrainOptions(**({"learning_rate": 1e-2, "batch_size": 4} | changes))


def train(model: LanguageModel, examples: list[Example], **changes: Any) -> list[StepLog]:
    loss = changes.pop("loss", PairLoss())
    hooks = Hooks(*(changes.pop(key, None) for key in ("keep", "after_step")))
    rate = changes.pop("learning_rate", 1e-2)
    return fit(model, examples, options(**changes), loss, learning_rate=rate, seed=5, hooks=hooks)


def log_probs(model: LanguageModel, examples: list[Example], micro_tokens: int = 60) -> list[Any]:
    return sequence_log_probs(model, examples, micro_tokens=micro_tokens, head_chunk=7)


def referenced(model: LanguageModel, examples: list[Example]) -> list[Example]:
    with model.reference():
        return with_reference(examples, log_probs(model, examples))


def naive_log_prob(model: LanguageModel, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    """One sequence, all logits of the unpatched network."""
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([prompt + response])).logits[0].double()
    chosen = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return float(chosen.gather(1, torch.tensor(response)[:, None]).sum())


def margin(model: LanguageModel, example: Example) -> float:
    ((chosen, rejected),) = log_probs(model, [example])
    return float(chosen - rejected)


# -- log-probabilities


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_equal_those_of_whole_logits(architecture: str) -> None:
    model = tiny_model(architecture)
    examples = random_pairs(7)
    expected = [naive_log_prob(model, e.prompt, r) for e in examples for r in e.responses]
    for micro_tokens in (1, 60, 10**6):
        found = log_probs(model, examples, micro_tokens)
        assert [value for pair in found for value in pair] == pytest.approx(expected, abs=1e-4)


def test_order_of_examples_does_not_matter() -> None:
    model, examples = tiny_model(), random_pairs(9)
    shuffled = random.Random(2).sample(examples, len(examples))
    found = dict(zip([e.id for e in shuffled], log_probs(model, shuffled), strict=True))
    assert [found[e.id] for e in examples] == log_probs(model, examples)


def test_other_rows_and_padding_do_not_matter() -> None:
    model = tiny_model(dtype="float64")
    draw = random.Random(4)
    mine = ((1, 9, 8, 7), (5, 6, EOS))
    alone = forward_log_probs(model, [mine], head_chunk=7).item()
    for _ in range(3):
        other = (random_ids(draw, 5, 20), random_ids(draw, 5, 20))
        with mock.patch("lada.forward._PASS_COST", {"cpu": 10**6}):  # one padded pass for all
            beside = forward_log_probs(model, [other, mine, other], head_chunk=7)
        assert beside[1].item() == pytest.approx(alone, abs=1e-10)


def test_pad_token_is_never_seen() -> None:
    model = tiny_model(dtype="float64")
    pairs = [((1, 9, 8), (5, 6)), ((1, 4, 5, 6, 7), (8, 9, 10, EOS))]
    with mock.patch("lada.forward._PASS_COST", {"cpu": 10**6}):
        before = forward_log_probs(model, pairs, head_chunk=7)
        model.pad_id = 33
        assert torch.equal(forward_log_probs(model, pairs, head_chunk=7), before)


def test_prompt_tokens_are_conditions_not_targets() -> None:
    model = tiny_model(dtype="float64")
    recorded: list[torch.Tensor] = []
    original = losses._log_prob

    def spy(scores: torch.Tensor, targets: torch.Tensor) -> Any:
        recorded.append(targets.clone())
        return original(scores, targets)

    with mock.patch.object(losses, "_log_prob", spy):
        forward_log_probs(model, [((1, 40, 41), (5, 6, EOS)), ((1, 42), (7,))], head_chunk=64)
    assert sorted(torch.cat(recorded).tolist()) == sorted([5, 6, EOS, 7])


def test_eos_counts_if_and_only_if_it_is_there() -> None:
    model = tiny_model()
    prompt, text = (1, 9, 8), (5, 6, 7)
    without, with_eos = forward_log_probs(
        model, [(prompt, text), (prompt, (*text, EOS))], head_chunk=7
    ).tolist()
    last = naive_log_prob(model, prompt + text, (EOS,))
    assert with_eos - without == pytest.approx(last, abs=1e-4)
    assert last < -0.01


def test_empty_and_one_token_responses() -> None:
    model = tiny_model()
    found = forward_log_probs(model, [((1, 9), ()), ((1, 9), (5,))], head_chunk=7)
    assert found[0] == 0
    assert found[1].item() == pytest.approx(naive_log_prob(model, (1, 9), (5,)), abs=1e-5)
    assert forward_log_probs(model, [((1, 9), ())], head_chunk=7).tolist() == [0]


def test_cut_pads_little_and_joins_when_passes_are_dear() -> None:
    assert cut([50, 49, 10, 9], 5) == [(0, 2), (2, 4)]
    assert cut([50, 49, 10, 9], 10**6) == [(0, 4)]
    assert cut([50, 49, 10, 9], 0) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert cut([], 5) == []


def test_padding_counts_in_a_micro_batch_only_where_it_is_one_pass() -> None:
    model, lengths = tiny_model(), [[10, 2], [10], [3, 3], [30, 30], []]
    assert micro_batches(model, "abcde", lengths, 30) == [["a", "b", "c"], ["d"], ["e"]]
    model.ranks = Ranks(0, 2, zero=3)
    assert micro_batches(model, "abcde", lengths, 30) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert micro_batches(model, "", [], 30) == []
    model.ranks = Ranks(0, 2, zero=2)
    assert micro_batches(model, "abcde", lengths, 30) == [["a", "b", "c"], ["d"], ["e"]]


# -- the reference


@BOTH
def test_policy_starts_at_its_reference_even_after_local_fine_tuning(lora: LoraOptions | None) -> None:
    model, examples = tiny_model(lora=lora), random_pairs(6)
    train(model, examples, loss=PairLoss(kind="cross_entropy"), epochs=3)
    model.set_reference(model.state())
    logs = train(model, referenced(model, examples), learning_rate=0.0)
    assert [entry.loss for log in logs for entry in log.losses] == pytest.approx([LOG_2] * 6, abs=1e-5)


@BOTH
def test_reference_is_bit_equal_after_training(lora: LoraOptions | None) -> None:
    model, examples = tiny_model(lora=lora), random_pairs(6)
    train(model, examples, loss=PairLoss(kind="cross_entropy"))
    model.set_reference(model.state())
    before = log_probs_of_reference(model, examples)
    policy = state_hash(model.state())
    train(model, referenced(model, examples), epochs=3)
    assert log_probs_of_reference(model, examples) == before
    assert state_hash(model.state()) != policy
    assert log_probs(model, examples) != before


def log_probs_of_reference(model: LanguageModel, examples: list[Example]) -> list[Any]:
    with model.reference():
        return log_probs(model, examples)


def test_reference_without_local_fine_tuning_is_the_base_model() -> None:
    model, examples = tiny_model(lora=LORA), random_pairs(6)
    base = log_probs(model, examples)
    train(model, referenced(model, examples), epochs=3)
    assert log_probs_of_reference(model, examples) == base


# -- gradients


def parameters_of(model: LanguageModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.trainable()])


def all_double() -> Any:
    """Transformers' norms compute in float32 whatever the weights; inside, they do so in float64."""
    return mock.patch.object(torch, "float32", torch.float64)


def gradient_of(model: LanguageModel, value: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, model.trainable())])


@BOTH
def test_gradient_at_the_reference_has_its_closed_form(lora: LoraOptions | None) -> None:
    model = tiny_model(lora=lora, dtype="float64")
    (example,) = random_pairs(1)
    pairs = [(example.prompt, response) for response in example.responses]
    with all_double():
        (example,) = referenced(model, [example])
        apart = [forward_log_probs(model, [pair], head_chunk=7)[0] for pair in pairs]
        expected = -0.05 * (gradient_of(model, apart[0]) - gradient_of(model, apart[1]))
        objective, _ = training._micro_batch(model, [example], PairLoss(beta=0.1), 7)
        found = gradient_of(model, objective)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_finite_differences_of_the_objective(architecture: str) -> None:
    model = tiny_model(architecture, dtype="float64")
    members = referenced(model, random_pairs(3))
    draw = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=draw, dtype=torch.float64) for p in model.trainable()]
    loss = PairLoss(nll_weight=0.1, label_smoothing=0.1)

    def objective() -> torch.Tensor:
        return training._micro_batch(model, members, loss, 7)[0]

    def moved(step: float) -> float:
        with torch.no_grad():
            for parameter, way in zip(model.trainable(), direction, strict=True):
                parameter.add_(way, alpha=step)
        return objective().item()

    with all_double():
        slopes = torch.autograd.grad(objective(), model.trainable())
        ahead, behind = moved(1e-5), moved(-2e-5)
    expected = float(sum((g * way).sum() for g, way in zip(slopes, direction, strict=True)))
    assert (ahead - behind) / 2e-5 == pytest.approx(expected, rel=1e-6)


@BOTH
def test_one_step_raises_the_margin_whichever_side_is_preferred(lora: LoraOptions | None) -> None:
    (pair,) = random_pairs(1)
    for example in (pair, replace(pair, terms=(Term("client-1", 1, 0),))):
        model = tiny_model(lora=lora)
        before = margin(model, pair)
        train(model, referenced(model, [example]), learning_rate=1e-3)
        assert (margin(model, pair) > before) == (example is pair)


@pytest.mark.filterwarnings("ignore")  # TRL's own
def test_agreement_with_trl(tmp_path: Any) -> None:
    trl = pytest.importorskip("trl", reason="TRL is the oracle of this test alone")
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    model = tiny_model(dtype="float32", initializer_range=0.05)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer, pad_token="<0>", eos_token="<2>", unk_token="<3>"
    )
    stub = {"prompt": "t5 t6", "chosen": " t7", "rejected": " t8"}
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        beta=0.1,
        report_to=[],
        gradient_checkpointing=False,
    )
    trainer = trl.DPOTrainer(
        model=tiny_model(initializer_range=0.05).network,
        ref_model=tiny_model(initializer_range=0.05, seed=1).network,
        args=arguments,
        train_dataset=Dataset.from_list([stub]),
        processing_class=tokenizer,
    )
    reference = tiny_model(initializer_range=0.05, seed=1)
    for seed in range(3):
        examples = random_pairs(4, seed=seed)
        examples = with_reference(examples, log_probs(reference, examples))
        batch = trainer.data_collator(
            [
                {
                    "prompt_ids": list(e.prompt),
                    "chosen_ids": list(e.responses[0]),
                    "rejected_ids": list(e.responses[1]),
                }
                for e in examples
            ]
        )
        trainer.model.zero_grad()
        theirs = trainer.compute_loss(trainer.model, batch)
        theirs.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1e9)
        (ours,) = train(model, examples, learning_rate=0.0)
        assert ours.objective == pytest.approx(float(theirs), abs=1e-6)
        assert ours.grad_norm == pytest.approx(float(norm), rel=1e-4)


# -- batches


def outcome(lora: LoraOptions | None, **changes: Any) -> tuple[list[StepLog], torch.Tensor]:
    model = tiny_model(lora=lora, dtype="float64")
    logs = train(model, referenced(model, random_pairs(10)), **changes)
    return logs, parameters_of(model)


@BOTH
def test_result_does_not_depend_on_micro_batches(lora: LoraOptions | None) -> None:
    whole_logs, whole = outcome(lora, epochs=2, micro_tokens=10**6)
    split_logs, split = outcome(lora, epochs=2, micro_tokens=1)
    torch.testing.assert_close(split, whole, rtol=1e-6, atol=1e-8)
    for a, b in zip(whole_logs, split_logs, strict=True):
        assert a.objective == pytest.approx(b.objective, abs=1e-9)
        assert [(e.id, e.partner) for e in a.losses] == [(e.id, e.partner) for e in b.losses]
        assert [e.loss for e in a.losses] == pytest.approx([e.loss for e in b.losses], abs=1e-9)


def server_sample(partners: int, weights: list[float]) -> tuple[Example, list[Example]]:
    """One grouped sample, and the same as pairs of their own."""
    draw = random.Random(8)
    prompt, own = (1, *random_ids(draw, 3, 8)), (*random_ids(draw, 3, 8), EOS)
    texts = [(*random_ids(draw, 2, 9), EOS) for _ in range(partners)]
    terms = tuple(Term(f"client-{k + 1}", k + 1, 0, weights[k]) for k in range(partners))
    grouped = Example("g", prompt, (own, *texts), terms)
    single = [
        Example(f"s{k}", prompt, (own, text), (Term(f"client-{k + 1}", 1, 0, weights[k]),))
        for k, text in enumerate(texts)
    ]
    return grouped, single


def test_grouped_server_sample_equals_separate_pairs() -> None:
    model = tiny_model(dtype="float64")
    grouped, single = server_sample(3, [0.5, 0.3, 0.2])
    reference = tiny_model(seed=1, dtype="float64")
    grouped, *single = with_reference([grouped, *single], log_probs(reference, [grouped, *single]))
    with all_double():
        joint, joint_losses = training._micro_batch(model, [grouped], PairLoss(), 7)
        apart, apart_losses = training._micro_batch(model, single, PairLoss(), 7)
        slopes = gradient_of(model, joint), gradient_of(model, apart)
    torch.testing.assert_close(*slopes)
    assert [e.loss for e in joint_losses[0]] == pytest.approx([e[0].loss for e in apart_losses], abs=1e-7)


def test_grouped_sample_forwards_each_response_once() -> None:
    model = tiny_model()
    (grouped,) = referenced(model, [server_sample(3, [0.5, 0.3, 0.2])[0]])
    counted = count(model, lambda: train(model, [grouped], learning_rate=0.0))
    assert counted["rows"] == 4


def test_objective_is_the_mean_over_samples_of_weighted_terms() -> None:
    model = tiny_model()
    grouped, single = server_sample(2, [0.75, 0.25])
    reference = tiny_model(seed=1)
    examples = with_reference([grouped, single[0]], log_probs(reference, [grouped, single[0]]))
    (log,) = train(model, examples, learning_rate=0.0)
    of_group = [e.loss for e in log.losses if e.id == "g"]
    (of_single,) = [e.loss for e in log.losses if e.id == "s0"]
    expected = (0.75 * of_group[0] + 0.25 * of_group[1] + 0.75 * of_single) / 2
    assert log.objective == pytest.approx(expected, rel=1e-6)
    assert abs(of_group[0] - of_group[1]) > 1e-3


def test_one_partner_per_sample_is_the_mean_of_pair_losses() -> None:
    model = tiny_model()
    examples = with_reference(random_pairs(4), log_probs(tiny_model(seed=1), random_pairs(4)))
    (log,) = train(model, examples, learning_rate=0.0)
    assert log.objective == pytest.approx(sum(e.loss for e in log.losses) / 4, rel=1e-6)


def test_losses_are_those_before_the_step() -> None:
    model = tiny_model()
    examples = referenced(model, random_pairs(4))
    seen: list[tuple[int, list[Any]]] = []
    logs = train(
        model, examples, epochs=2, after_step=lambda log: seen.append((log.step, log_probs(model, examples)))
    )
    assert [e.loss for e in logs[0].losses] == pytest.approx([LOG_2] * 4, abs=1e-5)
    after_first = {e.id: values for e, values in zip(examples, seen[0][1], strict=True)}
    for entry in logs[1].losses:
        assert entry.chosen_log_prob == pytest.approx(after_first[entry.id][0], abs=1e-4)
        assert entry.rejected_log_prob == pytest.approx(after_first[entry.id][1], abs=1e-4)
    assert [step for step, _ in seen] == [0, 1]


def test_epochs_show_every_sample_once_in_a_new_order() -> None:
    model = tiny_model()
    logs = train(model, referenced(model, random_pairs(10)), epochs=2, learning_rate=0.0)
    orders = [[e.id for log in logs if log.epoch == epoch for e in log.losses] for epoch in (0, 1)]
    assert [len(log.losses) for log in logs] == [4, 4, 2] * 2
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(e.id for e in random_pairs(10))
    assert orders[0] != orders[1]


def test_max_steps_wraps_epochs() -> None:
    model = tiny_model()
    logs = train(model, referenced(model, random_pairs(6)), max_steps=5, learning_rate=0.0)
    assert [(log.step, log.epoch, len(log.losses)) for log in logs] == [
        (0, 0, 4),
        (1, 0, 2),
        (2, 1, 4),
        (3, 1, 2),
        (4, 2, 4),
    ]


def test_keep_drops_samples_and_empty_batches() -> None:
    model, dropped = tiny_model(), {"q0", "q3"}
    examples = referenced(model, random_pairs(8))
    logs = train(model, examples, keep=lambda batch: [e for e in batch if e.id not in dropped])
    assert {e.id for log in logs for e in log.losses} == {e.id for e in examples} - dropped
    before = state_hash(model.state())
    assert train(model, examples, max_steps=3, keep=lambda batch: []) == []
    assert state_hash(model.state()) == before


def test_same_seed_same_bits_and_no_foreign_random_state() -> None:
    lora = LoraOptions(rank=4, alpha=8, dropout=0.3)
    hashes = []
    for foreign in (1, 2):
        torch.manual_seed(foreign)
        random.seed(foreign)
        states = torch.get_rng_state(), random.getstate()
        model = tiny_model(lora=lora)
        train(model, referenced(model, random_pairs(6)), epochs=2)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert not model.network.training
        hashes.append(state_hash(model.state()))
    assert hashes[0] == hashes[1]


def test_dropout_is_on_where_the_adapter_has_it() -> None:
    losses_of = {}
    for dropout in (0.0, 0.5):
        model = tiny_model(lora=LoraOptions(rank=4, alpha=8, dropout=dropout))
        logs = train(model, referenced(model, random_pairs(6)), epochs=4, learning_rate=3e-2)
        losses_of[dropout] = [log.objective for log in logs]
    assert losses_of[0.0] != losses_of[0.5]


def test_passes_in_hooks_do_not_switch_dropout_off() -> None:
    def objectives(*, with_hook: bool) -> list[float]:
        model = tiny_model(lora=LoraOptions(rank=4, alpha=8, dropout=0.5))
        hook = (lambda log: log_probs(model, random_pairs(2))) if with_hook else None
        logs = train(model, referenced(model, random_pairs(6)), epochs=4, after_step=hook)
        return [log.objective for log in logs]

    assert objectives(with_hook=True) == objectives(with_hook=False)


@BOTH
def test_training_lowers_the_loss(lora: LoraOptions | None) -> None:
    model = tiny_model(lora=lora)
    logs = train(model, referenced(model, random_pairs(4)), epochs=8)
    assert logs[-1].objective < 0.5 < logs[0].objective


def test_no_examples() -> None:
    assert train(tiny_model(), []) == []
    assert train(tiny_model(), [], max_steps=3) == []
    assert log_probs(tiny_model(), []) == []


def test_preference_needs_reference_log_probs() -> None:
    with pytest.raises(AssertionError, match="q0 has no reference"):
        train(tiny_model(), random_pairs(1))


def test_infinite_loss_names_its_samples() -> None:
    model = tiny_model()
    examples = referenced(model, random_pairs(3))
    before = state_hash(model.state())
    examples[1] = replace(examples[1], reference=(math.nan, 0.0))
    with pytest.raises(ModelError, match=r"at samples q1$"):
        train(model, examples)
    assert state_hash(model.state()) == before


def test_cross_entropy_reads_chosen_texts_alone() -> None:
    model, examples = tiny_model(lora=LORA), random_pairs(4)
    counted = count(
        model, lambda: train(model, examples, loss=PairLoss(kind="cross_entropy"), learning_rate=0.0)
    )
    assert counted["head_rows"] == sum(len(e.responses[0]) for e in examples)
    (log,) = train(model, examples, loss=PairLoss(kind="cross_entropy"), learning_rate=0.0)
    expected = {
        e.id: -naive_log_prob(model, e.prompt, e.responses[0]) / len(e.responses[0]) for e in examples
    }
    assert {e.id: e.loss for e in log.losses} == pytest.approx(expected, abs=1e-5)
    assert {e.rejected_log_prob for e in log.losses} == {None}


# -- cost, counted


def count(model: LanguageModel, action: Any) -> dict[str, int]:
    """Body passes, rows and tokens through the body, rows through the head."""
    counted = {"passes": 0, "rows": 0, "tokens": 0, "head_rows": 0}
    hidden = model.hidden
    scores = losses._Projection.scores

    def spy_hidden(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        counted["passes"] += 1
        counted["rows"] += ids.shape[0]
        counted["tokens"] += ids.numel()
        return hidden(ids, *rest)

    def spy_scores(self: losses._Projection, rows: torch.Tensor) -> torch.Tensor:
        counted["head_rows"] += len(rows)
        return scores(self, rows)

    with (
        mock.patch.object(model, "hidden", spy_hidden),
        mock.patch.object(losses._Projection, "scores", spy_scores),
    ):
        action()
    return counted


def test_cost_of_a_step_and_of_a_pass() -> None:
    model = tiny_model(lora=LORA)
    examples = referenced(model, random_pairs(8))
    responses = [r for e in examples for r in e.responses]
    real = sum(len(e.prompt) + len(r) for e in examples for r in e.responses)
    step = count(model, lambda: train(model, examples, batch_size=8, learning_rate=0.0))
    once = count(model, lambda: log_probs(model, examples, micro_tokens=10**6))
    for counted in (step, once):
        assert counted["head_rows"] == sum(len(r) for r in responses)
        assert counted["rows"] == len(responses)
        assert counted["tokens"] <= 1.3 * real
        assert counted["passes"] <= 4


def test_trained_tied_head_gets_its_gradient_from_both_ends() -> None:
    model = tiny_model(dtype="float64")
    assert model.head_weight.requires_grad
    (example,) = random_pairs(1)
    value = forward_log_probs(model, [(example.prompt, example.responses[0])], head_chunk=3).sum()
    (ours,) = torch.autograd.grad(value, [model.head_weight])
    ids = torch.tensor([example.prompt + example.responses[0]])
    logits = model.network(input_ids=ids).logits[0].log_softmax(-1)[len(example.prompt) - 1 : -1]
    expected = logits.gather(1, torch.tensor(example.responses[0])[:, None]).sum()
    torch.testing.assert_close(ours, torch.autograd.grad(expected, [model.head_weight])[0])
