"""What would make a model fit that does not: each mend alone first, then more GPUs with all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from jobs.footprint import Footprint, Setup, generation_footprint, training_footprint
from lada.config import LoraOptions

MOST_GPUS = 128


def footprints(setup: Setup) -> tuple[Footprint, Footprint]:
    """Of training and of generation."""
    return training_footprint(setup), generation_footprint(setup)


def fits(setup: Setup, *, trains: bool = True) -> bool:
    """Whether there is room; a model that nobody trains is only asked to generate."""
    training, generation = footprints(setup)
    return generation.fits and (training.fits or not trains)


def remedies(setup: Setup, *, trains: bool = True) -> list[str]:
    """Changes of which each alone lets the setup fit; where none does, the fewest GPUs that do; last LoRA."""
    found = [words for words, changed in _changes(setup) if fits(changed, trains=trains)]
    found = found or [_more_gpus(setup, trains=trains)]
    if setup.lora is None and fits(_with_lora(setup), trains=trains):
        found.append('SET lora="{rank: 16, alpha: 32}" in place of full fine-tuning')
    return found


def _changes(setup: Setup) -> Iterator[tuple[str, Setup]]:
    if not setup.checkpointing:
        yield "checkpointing: true in the cluster file", replace(setup, checkpointing=True)
    for zero in (1, 2, 3):
        if setup.ranks > 1 and zero > setup.zero:
            yield f"zero: {zero} in the cluster file", replace(setup, zero=zero)
    for part in (2, 4, 8):
        tokens = setup.micro_tokens // part
        yield f"SET training.<role>.micro_tokens={tokens}", replace(setup, micro_tokens=tokens)
    for part in (2, 4, 8):
        if rows := setup.rows // part:
            yield f"SET generation.batch_size={rows}", replace(setup, rows=rows)


def _more_gpus(setup: Setup, *, trains: bool) -> str:
    """The fewest ranks, doubling, with everything that saves memory."""
    gpus = setup.ranks
    while gpus < MOST_GPUS:
        gpus *= 2
        if fits(replace(setup, ranks=gpus), trains=trains):
            return f"{gpus} GPUs (gpus, ranks and nodes in the cluster file), all else as it is"
        if fits(replace(setup, ranks=gpus, zero=3, checkpointing=True), trains=trains):
            return (
                f"{gpus} GPUs (gpus, ranks and nodes in the cluster file) with zero: 3, checkpointing: true"
            )
    return f"nothing up to {MOST_GPUS} GPUs: a layer or its cache is too large for one"


def _with_lora(setup: Setup) -> Setup:
    return replace(setup, lora=LoraOptions(rank=16, alpha=32, targets=setup.facts.lora_targets))
