"""What a plan assumes of GPUs, texts and selections: named here, overridden in a cluster file's ``planning``.

No number of a run depends on any of it. Speeds are assumptions until a step was measured on the cluster.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lada.config import Options, Positive

Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Multiple = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Accelerator(Options):
    """One GPU. Defaults: A800-80GB, which is A100 silicon with a slower NVLink.

    Attributes:
        name: for the page.
        memory_gb: of 10^9 bytes.
        reserve_gb: of them not for the model: CUDA context, NCCL, workspaces, fragmentation.
        tflops: peak of bf16 matrix products, 10^12 FLOP/s.
        bandwidth_gbs: of its memory, 10^9 bytes/s.
        link_gbs: at which a rank gathers what others hold, 10^9 bytes/s. Choice: 170 of NVLink's 400.
        node_link_gbs: likewise where the ranks lie on several nodes. Choice: one port of HDR InfiniBand a
            node, 200 Gb/s, which all its ranks share.
    """

    name: str = "A800-80GB"
    memory_gb: Amount = 80.0
    reserve_gb: Amount = 6.0
    tflops: Amount = 312.0
    bandwidth_gbs: Amount = 2039.0
    link_gbs: Amount = 170.0
    node_link_gbs: Amount = 25.0


class Efficiency(Options):
    """Shares of the peaks that are reached, and what is lost around the work. None of it was measured yet.

    Attributes:
        training: of ``tflops``, over forward, recomputation and backward.
        forward: of ``tflops``, in passes without gradients and in prompts that are read.
        decoding: of ``bandwidth_gbs``, while tokens are generated.
        launch_ms: least time of one layer for one token of all rows: kernels are launched one by one.
        load_gbs: at which weights come from the shared file system, 10^9 bytes/s.
        start_minutes: a stage's container, imports and checks.
        padding: training tokens computed, by tokens that are there. Choice: 1.2; micro-batches as they are
            cut on a GPU, of texts whose lengths vary by a factor of 1.65 (log-normal, 0.5), simulated: 1.21.
        gathered_padding: likewise under ZeRO-3, where a micro-batch is one pass as wide as its longest text,
            and ranks wait for the fullest. Choice: 1.8; simulated alike: 1.7 to 2.4 with 4 to 8 ranks.
    """

    training: Share = 0.40
    forward: Share = 0.50
    decoding: Share = 0.80
    launch_ms: Amount = 0.6
    load_gbs: Amount = 2.0
    start_minutes: Amount = 2.0
    padding: Multiple = 1.2
    gathered_padding: Multiple = 1.8


class Texts(Options):
    """Lengths in tokens, of mathematics as in MathInstruct and AQuA-RAT: 2.6 to 3.2 characters a token.

    In 262 AQuA-RAT questions a stem with its options has 228 characters on average and 821 at most: 88
    tokens, and some 40 of instructions and chat template. Their rationales have 110 characters; models write
    more.

    Attributes:
        question: mean of a prompt without demonstration.
        longest_question: of all.
        demonstration: what the one-shot setting adds to a prompt.
        response: mean of a reasoning text.
        longest_response: of some hundred, by the mean. Choice: 2.4, of log-normal lengths (0.5).
        answer: mean of an ``answer_only`` target.
        bytes_per_token: of UTF-8 text.
    """

    question: Positive = 130
    longest_question: Positive = 512
    demonstration: Positive = 260
    response: Positive = 250
    longest_response: Multiple = 2.4
    answer: Positive = 15
    bytes_per_token: Amount = 3.2


class MixedTexts(Texts):
    """Lengths of CoT-Collection's multiple-choice questions: English, about four characters a token.

    In 262 of AQuA-RAT, QASC and CoS-E a stem with its options has 179 characters on average: 45 tokens, and
    some 40 around them; with a passage of 300 words, as QuAIL's and RACE's have, 440. Choice: as many with
    passages as without. Their rationales have 128 characters on average, 32 tokens, where mathematics has 42
    (2.6 characters each): responses are taken to be shorter in proportion.
    """

    question: Positive = 260
    longest_question: Positive = 768
    response: Positive = 190
    bytes_per_token: Amount = 4.0


class DataSets(Options):
    """Lengths by data set.

    Attributes:
        mathematics: of all but the next. cot_collection: of CoT-Collection.
    """

    mathematics: Texts = Texts()
    cot_collection: MixedTexts = MixedTexts()

    def of(self, name: str) -> Texts:
        """Lengths of a data set, by its name in configs/datasets."""
        return self.cot_collection if name == "cot-collection" else self.mathematics


class Planning(Options):
    """All assumptions of a plan.

    Attributes:
        selected: share of the public questions that a filter with a threshold selects, the mean over all
            rounds; the first, near prototypes, takes less (``cold.share``), which is not told apart. Choice:
            what LaDa sends by what FedKD sends in the paper's Section VI-F, 3.57 by 5.15 MB.
    """

    accelerator: Accelerator = Accelerator()
    efficiency: Efficiency = Efficiency()
    texts: DataSets = DataSets()
    selected: Share = 0.7
