"""The plan's memory against what can be counted here: what autograd keeps, a step's peak, a cache's bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from jobs.assumptions import Accelerator, Planning
from jobs.footprint import (
    GB,
    Setup,
    activation_bytes,
    generation_footprint,
    kept_bytes,
    logit_bytes,
    training_footprint,
)
from jobs.remedies import fits, remedies
from lada.config import LoraOptions
from lada.model_facts import model_facts

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ONE_OF_EACH_CLASS = (
    "google/gemma-2-2b",
    "meta-llama/Meta-Llama-3-8B",
    "Qwen/Qwen2.5-72B-Instruct",
    "Qwen/Qwen3-8B",
)
PROMPT, RESPONSE, ROWS = 64, 64, 4
SMALL = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
}


def setup(model: str, *, lora: bool = True, **changes: Any) -> Setup:
    """One A800 and the paper tier's options, unless ``changes`` say otherwise."""
    facts = model_facts(model)
    options: dict[str, Any] = {
        "facts": facts,
        "lora": LoraOptions(rank=16, alpha=32) if lora else None,
        "keeps_reference": True,
        "ranks": 1,
        "zero": 0,
        "checkpointing": True,
        "micro_tokens": 8192,
        "head_chunk": 1024,
        "rows": 64,
        "longest_prompt": 512,
        "max_new_tokens": 1024,
        "responses": 2,
        "planning": Planning(),
    }
    return Setup(**{**options, **changes})


def small(model: str, *, lora: bool, layers: int, **changes: Any) -> Setup:
    """The model's class and features with small shapes, and a micro-batch of `ROWS` texts."""
    facts = model_facts(model)
    shape = facts.architecture.model_copy(update={**SMALL, "num_layers": layers})
    return setup(
        model,
        facts=facts.model_copy(update={"architecture": shape}),
        lora=lora,
        micro_tokens=ROWS * (PROMPT + RESPONSE),
        head_chunk=64,
        longest_prompt=PROMPT,
        max_new_tokens=RESPONSE,
        responses=1,
        **changes,
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(one: Setup) -> Any:
    """A language model of these shapes in bf16."""
    from tokenizers import Tokenizer

    from lada.lab import WEIGHTS
    from lada.language_model import LanguageModel
    from lada.models import build_network

    config = one.facts.config_json | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    tokenizer = Tokenizer.from_file(str(WEIGHTS / "qwen3-8b" / "tokenizer.json"))
    model = LanguageModel(build_network(config, seed=0, dtype="bfloat16"), tokenizer, lora=one.lora)
    if one.checkpointing:
        model.network.train()
        base = model.network if one.lora is None else model.network.get_base_model()
        base.activation_checkpointing_enable({"use_reentrant": False})
    return model


def kept_by_autograd(one: Setup) -> int:
    """Bytes of all storages that a forward pass over one text saves for its backward pass."""
    model = network(one)
    own = {parameter.untyped_storage()._cdata for parameter in model.network.parameters()}
    own |= {buffer.untyped_storage()._cdata for buffer in model.network.buffers()}
    saved: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.hidden(torch.zeros(1, PROMPT + RESPONSE, dtype=torch.long))
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("model", ONE_OF_EACH_CLASS)
def test_what_autograd_keeps_of_a_layer(model: str, lora: bool) -> None:
    two, three = (small(model, lora=lora, layers=count, checkpointing=False) for count in (2, 3))
    counted = (kept_by_autograd(three) - kept_by_autograd(two)) / (PROMPT + RESPONSE)
    assert kept_bytes(two) == pytest.approx(counted, rel=0.02)
    two, three = (replace(one, checkpointing=True) for one in (two, three))
    counted = (kept_by_autograd(three) - kept_by_autograd(two)) / (PROMPT + RESPONSE)
    assert counted == 2 * two.shape.hidden_size, "with checkpointing the input of each layer alone"


def peak_bytes(work: Callable[[], None]) -> int:
    """Most bytes that ``work`` has allocated at a time, beyond what was there before."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        work()
    found = [one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = peak = 0
    for event in sorted(found, key=lambda one: one.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("model", ONE_OF_EACH_CLASS)
def test_the_peak_of_a_training_step(model: str, lora: bool, checkpointing: bool) -> None:
    """A micro-batch that is not the step's first: gradients are there already.

    Never less than measured. More where a layer is computed again: the head's buffers are gone by then, and
    at these small shapes they are a large part of all.
    """
    from lada.forward import forward_log_probs

    one = small(model, lora=lora, layers=5, checkpointing=checkpointing)
    learner = network(one)
    texts = [(tuple(range(3, 3 + PROMPT)), tuple(range(90, 90 + RESPONSE)))] * ROWS

    def step() -> None:
        total = forward_log_probs(learner, texts, head_chunk=one.head_chunk).sum()
        torch.autograd.backward(total)

    step()
    measured, estimated = peak_bytes(step), activation_bytes(one) + logit_bytes(one)
    most = 1.6 if checkpointing else 1.2
    assert 1.0 <= estimated / measured <= most, f"{estimated:.3g} by {measured:.3g} bytes"


def test_the_cache_of_generation() -> None:
    from lada.row_cache import RowCache

    one = small("Qwen/Qwen3-8B", lora=True, layers=3, rows=ROWS)
    cache = RowCache(ROWS, one.longest)
    states = torch.zeros(ROWS, SMALL["num_kv_heads"], 5, SMALL["head_dim"], dtype=torch.bfloat16)
    cache.rows = ROWS
    for layer in range(3):
        cache.update(states, states, layer)
    measured = sum(part.nbytes for buffers in cache._buffers for part in buffers)
    assert generation_footprint(one).parts["KV cache"] * GB == measured


# -- arithmetic


def test_states_of_full_fine_tuning_are_shared_by_zero() -> None:
    """Weights in bf16, master weights and Adam's moments in float32: 16 bytes with gradients in bf16.

    DeepSpeed adds gradients up in float32: 18 bytes.
    """
    model, count = "Qwen/Qwen3-8B", model_facts("Qwen/Qwen3-8B").architecture.parameters / GB
    for zero, bytes_each in ((0, 16), (1, 6 + 12 / 8), (2, 2 + 16 / 8), (3, 18 / 8)):
        parts = training_footprint(setup(model, lora=False, ranks=8, zero=zero)).parts
        states = parts["weights"] + parts["gradients"] + parts["optimiser"]
        assert states == pytest.approx(bytes_each * count, rel=1e-6), zero
        assert ("gathered" in parts) == (zero == 3)


def test_an_adapter_costs_sixteen_bytes_and_a_clients_reference_four() -> None:
    one = setup("Qwen/Qwen3-8B")
    with_reference = training_footprint(one).gb
    assert with_reference - training_footprint(replace(one, keeps_reference=False)).gb == pytest.approx(
        4 * one.trained / GB
    )
    assert one.trained == 43646976
    parts = training_footprint(replace(one, keeps_reference=False)).parts
    states = parts["weights"] + parts["gradients"] + parts["optimiser"] - one.weight_bytes / GB
    assert states == pytest.approx(16 * one.trained / GB)


@pytest.mark.parametrize(
    ("model", "gb"),
    [
        ("Qwen/Qwen3-8B", 6.6),
        ("google/gemma-2-27b", 16.0),
        ("Qwen/Qwen3-32B", 16.8),
        ("Qwen/Qwen2.5-72B-Instruct", 32.7),
    ],
)
def test_near_the_performance_studys_table(model: str, gb: float) -> None:
    """Its rough figures: ZeRO-3 over 8, LoRA of rank 16, checkpointing, 4096 tokens; it left out more."""
    one = setup(
        model, ranks=8, zero=3, micro_tokens=4096, head_chunk=256, longest_prompt=256, max_new_tokens=256
    )
    assert 0.8 <= training_footprint(one).gb / gb <= 1.5


def test_the_step_of_a_fused_adamw_holds_gradients_in_float32() -> None:
    """Of Qwen3-8B's 8.19e9 parameters; ZeRO-3 steps 10^9 of its share at a time."""
    for ranks, zero, gb in ((1, 0, 32.763), (8, 2, 4.095), (2, 3, 4.0), (16, 3, 2.048)):
        parts = training_footprint(setup("Qwen/Qwen3-8B", lora=False, ranks=ranks, zero=zero)).parts
        assert parts["step"] == pytest.approx(gb, rel=1e-3), (ranks, zero)


def test_every_rank_decodes_its_own_rows_beside_its_share_and_a_whole_layer() -> None:
    """Qwen2.5-72B in eight shares, by hand.

    A layer: queries and output 2 * 8192^2, keys and values 2 * 8192 * 1024, MLP 3 * 8192 * 29568, norms
    2 * 8192, biases 8192 + 2048; 80 of them, two ends of 152064 * 8192, a norm. An adapter of rank 16 has in
    each layer 16 * (2 * 16384 + 2 * 9216 + 3 * 37760), in float32, and a client's reference as much.
    """
    one = setup("Qwen/Qwen2.5-72B-Instruct", ranks=8, zero=3)
    parts = generation_footprint(one).parts
    layer = 134_217_728 + 16_777_216 + 726_663_168 + 16_384 + 10_240
    end = 1_245_708_288
    adapters = 2 * 4 * 80 * 16 * (32_768 + 18_432 + 113_280)
    weights = 2 * (80 * layer + 2 * end + 8192)
    assert parts["weights"] == pytest.approx((weights + adapters) / 8 / 1e9, rel=1e-9)
    assert parts["gathered"] == pytest.approx(2 * (2 * layer + end) / 1e9, rel=1e-9)
    # 64 rows of 512 + 1024 + 64 columns; keys and values of 8 heads of 128 in 80 layers, two bytes each
    assert parts["KV cache"] == pytest.approx(64 * 1600 * 327_680 / 1e9, rel=1e-9)
    assert generation_footprint(replace(one, ranks=16)).parts["KV cache"] == parts["KV cache"]


def test_without_zero_3_every_rank_generates_with_all_weights() -> None:
    two, eight = (setup("Qwen/Qwen3-8B", ranks=ranks, zero=2) for ranks in (2, 8))
    assert generation_footprint(two).parts == generation_footprint(eight).parts
    assert "gathered" not in generation_footprint(eight).parts
    assert not generation_footprint(setup("Qwen/Qwen3-32B", ranks=8, zero=2)).fits
    assert generation_footprint(setup("Qwen/Qwen3-32B", ranks=8, zero=3)).fits


# -- what would fit


def tiny_gpus() -> Planning:
    """GPUs of 8 GB."""
    return Planning(accelerator=Accelerator(memory_gb=8.0, reserve_gb=2.0))


def test_each_remedy_is_one() -> None:
    one = setup("Qwen/Qwen3-32B", ranks=4, zero=0)
    assert not fits(one)
    assert remedies(one) == ["zero: 3 in the cluster file"]
    kept = setup("Qwen/Qwen3-8B", checkpointing=False)
    assert not fits(kept)
    assert remedies(kept)[0] == "checkpointing: true in the cluster file"
    smaller = [int(words.rpartition("=")[2]) for words in remedies(kept) if "micro_tokens" in words]
    assert all(fits(replace(kept, micro_tokens=tokens)) for tokens in smaller)
    assert fits(replace(kept, checkpointing=True))


def test_more_gpus_where_nothing_else_helps() -> None:
    full = setup("Qwen/Qwen3-32B", lora=False, ranks=4, zero=3)
    gpus, lora = remedies(full)
    assert gpus.startswith("16 GPUs") and lora.startswith("SET lora=")
    assert fits(replace(full, ranks=16)) and not fits(replace(full, ranks=8))
    fewer_rows = remedies(setup("Qwen/Qwen3-32B", ranks=1, rows=64), trains=False)
    assert fewer_rows == ["SET generation.batch_size=8"]
    huge = setup("Qwen/Qwen2.5-72B-Instruct", lora=False, planning=tiny_gpus())
    assert remedies(huge) == ["nothing up to 128 GPUs: a layer or its cache is too large for one"]


def test_a_model_that_nobody_trains_needs_no_room_for_it() -> None:
    server = setup("Qwen/Qwen3-32B", rows=8, keeps_reference=False)
    assert fits(server, trains=False) and not fits(server)
