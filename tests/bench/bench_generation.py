"""Greedy decoding of ours against `generate` of transformers, both with 16 rows and the adapter merged.

48 questions; each response has a length of its own (lognormal, median 80, at most 192) and ends there. G0 is
transformers in arrival order with a stopping criterion per row. Merging stands inside our clock only.
"""

from __future__ import annotations

import random
from unittest import mock

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from lada import decoding, generation
from lada.config import GenerationOptions
from lada.language_model import LanguageModel
from tests.bench.interleave import Arm, compare
from tests.bench.shapes import PAD, Shape, build_model, lengths, token_lists, words

NUM_PROMPTS, ROWS, LIMIT = 48, 16, 192


class RowLengths(StoppingCriteria):
    def __init__(self, limits: list[int], width: int) -> None:
        self.limits, self.width = torch.tensor(limits), width

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        return self.limits <= input_ids.shape[1] - self.width


def hugging_face_arm(model: LanguageModel, prompts: list[list[int]], limits: list[int]) -> Arm:
    def run() -> list[str]:
        texts = []
        for first in range(0, len(prompts), ROWS):
            rows, ends = prompts[first : first + ROWS], limits[first : first + ROWS]
            width = max(len(row) for row in rows)
            ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            with torch.inference_mode():
                out = model.network.get_base_model().generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max(ends),
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=PAD,
                    stopping_criteria=StoppingCriteriaList([RowLengths(ends, width)]),
                )
            for row, end in zip(out.tolist(), ends, strict=True):
                texts.append(model.text(row[width : width + end]))
        return texts

    return run


def our_arm(
    model: LanguageModel, prompts: list[list[int]], limits: list[int], options: GenerationOptions
) -> Arm:
    """Our decoding, each response as long as its limit."""
    texts = [words(prompt) for prompt in prompts]
    admit = decoding.Decoder.admit

    def admit_limited(decoder: decoding.Decoder, rows: list[decoding.Row]) -> None:
        for row in rows:
            row.options = options.model_copy(update={"max_new_tokens": limits[row.index]})
        admit(decoder, rows)

    def run() -> list[str]:
        with mock.patch.object(decoding.Decoder, "admit", admit_limited):
            return [one.text for one in generation.generate(model, texts, options)]

    return run


def bench(shape: Shape) -> None:
    model = build_model(shape)
    model.end_ids = frozenset()  # random weights end nowhere in particular
    draw = random.Random(7)
    prompts = token_lists(lengths(NUM_PROMPTS, 110, 0.45, 40, 320, draw), shape.vocab, draw)
    limits = lengths(NUM_PROMPTS, 80, 0.5, 16, LIMIT, draw)
    ours = our_arm(model, prompts, limits, GenerationOptions(max_new_tokens=LIMIT, batch_size=ROWS))
    merged = build_model(shape)
    merged.network.merge_adapter()
    arms = {
        "G0": hugging_face_arm(merged, prompts, limits),
        "ours": ours,
        "A/A": ours,
    }
    results = compare(arms, base="ours", repetitions=shape.decodings)
    same = sum(a == b for a, b in zip(results["G0"], results["ours"], strict=True))
    print(f"  responses equal to those of G0: {same}/{NUM_PROMPTS}; {sum(limits)} tokens")
