"""Benchmarks on one CPU core: against TRL and transformers, and the plan's seconds against measured ones.

    taskset -c 1 python -m tests.bench [--quick]

Both sides run in this process, with the same threads and matmul precision. A ratio says how
many times longer than ours an arm takes; A/A is ours against itself and should be 1 within a few per cent.
``--quick`` leaves out the shape with the large vocabulary.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shape S only")
    parser.add_argument(
        "--only", choices=("training", "generation", "plan"), help="one of the three benchmarks"
    )
    arguments = parser.parse_args()

    import torch

    from lada.numerics import set_matmul_precision
    from tests.bench import bench_generation, bench_plan, bench_training
    from tests.bench.shapes import SHAPES

    torch.set_num_threads(1)
    precision, error = set_matmul_precision("medium")
    print(f"torch {torch.__version__}, matmul precision {precision} (relative error {error:.1e}), 1 thread")
    begin = time.perf_counter()
    for name, shape in SHAPES.items():
        if arguments.quick and name != "S":
            continue
        if arguments.only in (None, "training"):
            print(f"training step, shape {name}, {shape.steps} x {shape.pairs} pairs")
            bench_training.bench(shape)
        if arguments.only in (None, "generation"):
            print(f"generation, shape {name}, {bench_generation.NUM_PROMPTS} prompts")
            bench_generation.bench(shape)
    if arguments.only in (None, "plan"):
        print("the plan's seconds")
        bench_plan.bench()
    print(f"took {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
