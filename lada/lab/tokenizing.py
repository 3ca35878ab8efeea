"""One byte-level BPE tokenizer per model family, trained here on lab text.

All four can encode any Unicode text; they cut it differently, as the real families do: Qwen takes words and
numbers whole, Llama keeps the space before a number apart, Gemma reads digit by digit, InternLM has short
pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lada.data import lab
from lada.data.lab_facts import MODELS
from lada.data.lab_skills import lookup, trace
from lada.data.lab_words import stream
from lada.prompts import prompt, solution

PAD, EOS = "<|pad|>", "<|eos|>"
PAD_ID, EOS_ID = 0, 1
_NUM_TEXTS = 3000


@dataclass(frozen=True)
class Cut:
    """How a family cuts text: the pre-tokenizer's pattern, and the number of tokens (bytes included)."""

    pattern: str
    size: int


_REST = r"|\n| ?[^\sA-Za-z\d]+|\s"
CUTS = {
    "qwen": Cut(r" ?\d{1,2}| ?[A-Za-z]+" + _REST, 720),
    "llama": Cut(r"\d{1,3}| ?[A-Za-z]+" + _REST, 560),
    "gemma": Cut(r" ?\d| ?[A-Za-z]+" + _REST, 640),
    "internlm": Cut(r" ?\d{1,2}| ?[A-Za-z]{1,3}" + _REST, 640),
}


def train_tokenizer(family: str) -> Tokenizer:
    """The tokenizer of a family (a key of `CUTS`); the same text gives the same tokenizer."""
    cut = CUTS[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(cut.pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=cut.size,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def corpus() -> list[str]:
    """Lab text of all domains and all private tables, from the pre-training half of the questions.

    A tokenizer sees the invented words, not one fact about them that it could keep.
    """
    rng, texts = stream("tokenizer corpus"), []
    for dataset in lab.DATASETS:
        weights = dict.fromkeys(lab.GENERAL[dataset], 1.0)
        weights |= {name: 0.3 for name in lab.makers(dataset) if name not in weights}
        assert len(weights) == len(lab.GENERAL[dataset]) + len(MODELS)
        for item in lab.generate(dataset, weights, _NUM_TEXTS, "tokenizer", held_out=False):
            response = trace(item) if rng.random() < 0.2 else solution(item)
            texts.append(f"{prompt(item)} {response}")
    return texts + ["{} {}".format(*lookup(rng)) for _ in range(_NUM_TEXTS // 4)]
