"""How long a token takes after contexts of several lengths, in the engine, of models beside the first.

python -m tests.inference.measure_context MODEL... [--lengths 1024,8160] [--weights float32] [--threads 1] [--turns 5]
    [--tokens 20]

The models take turns; medians of the turns and of their ratios to the first model's are printed. Greedy, random
prompts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from synthe_core.hardware.mkl import request_strict_mode
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.interop.load import load_model
from tests.inference.measure_decoding import WARM, add, engine


def reading(model: LoadedModel, length: int, tokens: int) -> Engine:
    """An engine that has read a prompt of `length` tokens, and some more."""
    made = engine(model, 1)
    add(made, model, [100 + i * 37 % 2000 for i in range(length)], WARM + tokens)
    while made.metrics.computed_tokens < length + WARM - 1:
        made.step()
    return made


def timed(target: Engine, count: int) -> float:
    """Milliseconds of each of the next `count` tokens, on average."""
    start = time.perf_counter()
    for _ in range(count):
        target.step()
    return 1000 * (time.perf_counter() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--lengths", default="1024,8160")
    parser.add_argument("--weights", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    options = parser.parse_args()
    request_strict_mode()
    torch.set_num_threads(options.threads)
    models = {path: load_model(path, weights=options.weights) for path in options.models}
    for length in map(int, options.lengths.split(",")):
        engines = {path: reading(model, length, options.turns * options.tokens + 1) for path, model in models.items()}
        turns: list[list[float]] = []
        for _ in range(options.turns):
            turns.append([timed(each, options.tokens) for each in engines.values()])
        for index, path in enumerate(models):
            ratios = [turn[index] / turn[0] for turn in turns]
            print(
                f"{path.name}: {length} tokens read, {median(turn[index] for turn in turns):.2f} ms a token, "
                f"{median(ratios):.2f} of the first ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
