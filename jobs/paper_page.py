"""The page of a paper-tier plan: what an allocation request can quote, its last line the total."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.footprint import Footprint
from jobs.paper_plan import Estimate, PartyEstimate, StageEstimate
from jobs.words import size
from lada.config import RunConfig

WIDTH = 110
SETTINGS = ("zero-shot", "one-shot")
MEMORY_PARTS = {
    "weights": ("weights",),
    "states": ("gradients", "optimiser", "step"),
    "activity": ("activations", "prompts"),
    "logits": ("logits",),
    "shared": ("gathered", "buckets"),
    "cache": ("KV cache",),
}
"""Columns of the memory table, and the parts that each sums; the page says what they mean."""
WORK_COLUMNS = ("read", "trained", "generated", "10^15 FLOP", "h each", "GPU-hours", "sends", "adapters")


def total_gpu_hours(estimates: Sequence[Estimate]) -> int:
    """Of all runs of a page, rounded up to whole hours."""
    return math.ceil(sum(one.gpu_hours for one in estimates))


def show_page(estimates: Sequence[Estimate], console: Console) -> None:
    """Print the page of one run, or of the same run in several settings.

    Args:
        estimates: the longest prompts last: memory is shown for that one.
    """
    config, last = estimates[0].config, estimates[-1]
    console.print(_title(config), style="bold", markup=False)
    console.print(f"\nGB on each GPU at the peak, of {_room(last)} (10^9 bytes):")
    console.print(_memory(last))
    for one in estimates:
        console.print(f"\n{SETTINGS[one.config.shots]}, {one.config.rounds} rounds:")
        console.print(_work(one))
        console.print(_from_begin_to_end(one), markup=False)
        for line in _beyond_limits(one):
            console.print(line, markup=False)
    console.print()
    for line in _notes(last):
        console.print(line, markup=False)
    for name in sorted({name for one in estimates for name in one.unknown}):
        console.print(f"NOT MODELLED, so missing in all sums: step '{name}'", markup=False)
    console.print(f"total: {total_gpu_hours(estimates)} GPU-hours", markup=False)


def page_values(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """The page as JSON values: GB, tokens, FLOPs, hours, bytes."""
    return {
        "total_gpu_hours": total_gpu_hours(estimates),
        "settings": [_setting_values(one) for one in estimates],
        "planning": estimates[0].planning.model_dump(mode="json"),
    }


# -- tables


def _title(config: RunConfig) -> str:
    tuned = "full fine-tuning" if config.lora is None else f"LoRA of rank {config.lora.rank}"
    sizes = config.data
    return (
        f"Scenario {config.scenario}: {config.method_label} on {config.dataset.name}, {tuned}, one seed; "
        f"{sizes.num_train} + {sizes.num_test} questions a client, {sizes.num_public} public"
    )


def _room(one: Estimate) -> str:
    gpu = one.planning.accelerator
    room = gpu.memory_gb - gpu.reserve_gb
    return f"{room:g} ({gpu.name}: {gpu.memory_gb:g} less {gpu.reserve_gb:g} in reserve)"


def _memory(one: Estimate) -> Table:
    table = _table("party", "model", "10^9", "GPUs", "work", *MEMORY_PARTS, "all", left=(0, 1, 4))
    for party in one.parties:
        shown = [party.generation] if party.training is None else [party.training, party.generation]
        for row, found in enumerate(shown):
            table.add_row(*(_party_cells(party) if row == 0 else ("",) * 4), *_footprint_cells(found))
    return table


def _party_cells(party: PartyEstimate) -> tuple[str, ...]:
    count = party.setup.shape.parameters / 1e9
    zero = f" Z{party.setup.zero}" if party.setup.zero else ""
    name = party.party.model.rpartition("/")[2]
    return party.party.name, name, f"{count:.1f}", f"{party.gpus}{zero}"


def _footprint_cells(found: Footprint) -> list[str]:
    sums = [sum(found.parts.get(part, 0.0) for part in parts) for parts in MEMORY_PARTS.values()]
    return [found.kind, *(f"{value:.1f}" if value else "" for value in sums), f"{found.gb:.1f}"]


def _work(one: Estimate) -> Table:
    table = _table("party", "step", "times", "GB", *WORK_COLUMNS, left=(0, 1))
    for party in one.parties:
        steps: dict[str, list[StageEstimate]] = {}
        for stage in one.of(party.party.name):
            steps.setdefault(stage.stage.step.split("_")[0], []).append(
                stage
            )  # write_0, write_1, … are alike
        for row, (step, stages) in enumerate(steps.items()):
            name = party.party.name if row == 0 else ""
            gb = max(stage.gb for stage in stages)
            table.add_row(name, step, str(len(stages)), f"{gb:.0f}" if gb else "", *_work_cells(stages))
    table.add_row("all", "", str(len(one.stages)), "", *_work_cells(one.stages))
    return table


def _work_cells(stages: Sequence[StageEstimate]) -> list[str]:
    efforts = [one.effort for one in stages]
    tokens = [sum(getattr(each, name) for each in efforts) for name in ("read", "trained", "generated")]
    return [
        *(f"{value / 1e6:.2f}" if value else "" for value in tokens),
        f"{sum(each.flops for each in efforts) / 1e15:.0f}",
        f"{max((each.hours for each in efforts), default=0.0):.2f}",
        f"{sum(one.gpu_hours for one in stages):.1f}",
        _bytes(sum(one.bytes for one in stages)),
        _bytes(sum(one.extra_bytes for one in stages)),
    ]


def _bytes(count: float) -> str:
    return size(count) if count else ""


def _beyond_limits(one: Estimate) -> Iterator[str]:
    """Parties with a stage that takes longer than its time limit."""
    for party in one.parties:
        longest = max((stage.effort.hours for stage in one.of(party.party.name)), default=0.0)
        if 60 * longest > party.minutes:
            yield (
                f"{party.party.name}: a stage takes {longest:.1f} h and may take {party.minutes / 60:g} h: "
                "it saves a resume point and goes on in a next attempt."
            )


def _from_begin_to_end(one: Estimate) -> str:
    kinds: dict[str, float] = {}
    for stage in one.stages:
        for name, seconds in stage.effort.seconds.items():
            kinds[name] = kinds.get(name, 0.0) + seconds * stage.gpus / 3600
    largest = sorted(kinds.items(), key=lambda kind: -kind[1])
    named = ", ".join(f"{name} {hours:.1f}" for name, hours in largest)
    return (
        f"{one.wall_hours:.1f} hours from begin to end on {one.most_gpus} GPUs, without queue. "
        f"GPU-hours by work: {named}."
    )


def _notes(one: Estimate) -> list[str]:
    gpu, speed = one.planning.accelerator, one.planning.efficiency
    texts = one.planning.texts.of(one.config.dataset.name)
    return [
        "states: gradients and optimiser. activity: activations, or prompts that are read. shared: what "
        "ranks gather and exchange. Z: ZeRO stage; under Z3 every pass gathers all weights, in generation "
        "for each token. h each: of the longest. Tokens in 10^6: read without training, trained on (all "
        "epochs), newly generated. sends: what the method sends, a message once per recipient; adapters: "
        "these (of weight deltas above exchange.max_delta_bytes the hash alone) and rewards.",
        f"Assumed, not measured (`planning` in the cluster file): {gpu.tflops:g} TFLOP/s, of which "
        f"training reaches {speed.training:.0%}, other passes {speed.forward:.0%}; {gpu.bandwidth_gbs:g} "
        f"GB/s, of which decoding reaches {speed.decoding:.0%}, but {speed.launch_ms:g} ms a layer and "
        f"token at least; {gpu.link_gbs:g} GB/s between GPUs, {gpu.node_link_gbs:g} "
        f"between nodes; weights load at {speed.load_gbs:g} GB/s; a stage starts in "
        f"{speed.start_minutes:g} minutes. Training computes {speed.padding:g} tokens for each that is "
        f"there, {speed.gathered_padding:g} under Z3. Tokens: prompt {texts.question}, one-shot "
        f"{texts.demonstration} more, response {texts.response}. A threshold selects "
        f"{one.planning.selected:.0%} of the public set.",
        "Left out: the queue, second attempts, filters and votes (seconds), host memory, which holds the "
        "reference weights of full fine-tuning.",
    ]


def _table(*names: str, left: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place in left else "right", no_wrap=place in left)
    return table


# -- JSON


def _setting_values(one: Estimate) -> dict[str, Any]:
    return {
        "shots": one.config.shots,
        "gpu_hours": one.gpu_hours,
        "wall_hours": one.wall_hours,
        "gpus": one.most_gpus,
        "bytes": sum(stage.bytes for stage in one.stages),
        "extra_bytes": sum(stage.extra_bytes for stage in one.stages),
        "not_modelled": one.unknown,
        "parties": [_party_values(party) for party in one.parties],
        "stages": [_stage_values(stage) for stage in one.stages],
    }


def _party_values(party: PartyEstimate) -> dict[str, Any]:
    setup = party.setup
    return {
        "party": party.party.name,
        "model": party.party.model,
        "parameters": setup.shape.parameters,
        "trained_parameters": setup.trained,
        "gpus": party.gpus,
        "ranks": setup.ranks,
        "zero": setup.zero,
        "checkpointing": setup.checkpointing,
        "room_gb": party.generation.room_gb,
        "training_gb": None if party.training is None else party.training.parts,
        "generation_gb": party.generation.parts,
        "gathers_weights": setup.shards,
    }


def _stage_values(stage: StageEstimate) -> dict[str, Any]:
    found = stage.effort
    return {
        "stage": str(stage.stage),
        "group": stage.group,
        "gpus": stage.gpus,
        "tokens_read": found.read,
        "tokens_trained": found.trained,
        "tokens_generated": found.generated,
        "flops": found.flops,
        "seconds": found.seconds,
        "gpu_hours": stage.gpu_hours,
        "bytes": stage.bytes,
        "extra_bytes": stage.extra_bytes,
    }
