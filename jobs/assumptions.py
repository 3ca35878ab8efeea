"""What a plan assumes of GPUs, texts and selections: named here, overridden in a cluster file's ``planning``.

No number of a run depends on any of it. Speeds are assumptions until a step was measured on the cluster.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lada.config import Options, Positive

Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


class Accelerator(Options):
    """One GPU. Defaults: A800-80GB, which is A100 silicon with a slower NVLink.

    Attributes:
        name: for the page.
        memory_gb: of 10^9 bytes.
        reserve_gb: of them not for the model: CUDA context, NCCL, workspaces, fragmentation.
        tflops: peak of bf16 matrix products, 10^12 FLOP/s.
        bandwidth_gbs: of its memory, 10^9 bytes/s.
        link_gbs: at which a rank gathers what others hold, 10^9 bytes/s. Choice: 170 of NVLink's 400.
    """

    name: str = "A800-80GB"
    memory_gb: Amount = 80.0
    reserve_gb: Amount = 6.0
    tflops: Amount = 312.0
    bandwidth_gbs: Amount = 2039.0
    link_gbs: Amount = 170.0


class Efficiency(Options):
    """Shares of the peaks that are reached, and what is lost around the work. None of it was measured yet.

    Attributes:
        training: of ``tflops``, over forward, recomputation and backward.
        forward: of ``tflops``, in passes without gradients and in prompts that are read.
        decoding: of ``bandwidth_gbs``, while tokens are generated.
        launch_ms: least time of one layer for one token of all rows: kernels are launched one by one.
        load_gbs: at which weights come from the shared file system, 10^9 bytes/s.
        start_minutes: a stage's container, imports and checks.
    """

    training: Share = 0.40
    forward: Share = 0.50
    decoding: Share = 0.80
    launch_ms: Amount = 0.6
    load_gbs: Amount = 2.0
    start_minutes: Amount = 2.0


class Texts(Options):
    """Lengths in tokens, of mathematics as in MathInstruct and AQuA-RAT: about three characters a token.

    Attributes:
        question: mean of a prompt without demonstration.
        longest_question: of all.
        demonstration: what the one-shot setting adds to a prompt.
        response: mean of a reasoning text.
        answer: mean of an ``answer_only`` target.
        bytes_per_token: of UTF-8 text.
    """

    question: Positive = 130
    longest_question: Positive = 512
    demonstration: Positive = 260
    response: Positive = 250
    answer: Positive = 15
    bytes_per_token: Amount = 3.2


class Planning(Options):
    """All assumptions of a plan.

    Attributes:
        selected: share of the public questions that a filter with a threshold selects. Choice: what LaDa
            sends by what FedKD sends in the paper's Section VI-F, 3.57 by 5.15 MB.
    """

    accelerator: Accelerator = Accelerator()
    efficiency: Efficiency = Efficiency()
    texts: Texts = Texts()
    selected: Share = 0.7
