"""How long a token of each row takes in the engine, and a prompt of 512, in formats of weights and beside llama.cpp.

python -m tests.inference.measure_decoding MODEL.gguf [--weights auto,float32] [--rows 1,8,32] [--threads 1] [--turns 7]
    [--tokens 40] [--llama-cpp NODE_MODULES]

Everything takes turns; medians of the turns and of their ratios to the first format's are printed. Greedy, random
prompts of 32 tokens. llama.cpp: `llama_cpp_speed.mjs`, which draws its tokens itself, too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from synthe_core.hardware.mkl import request_strict_mode
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.load import load_model
from tests.paths import ROOT
from tests.processes import run_program

GREEDY = SamplingParams(temperature=0)
WARM = 4


class Timing(NamedTuple):
    """Milliseconds of a step of all rows, and of a prompt of 512 tokens."""

    step: float
    prefill: float


def engine(model: LoadedModel, rows: int) -> Engine:
    return Engine([model], max_num_seqs=rows, cache_bytes=0, max_state_bytes=1 << 40)


def add(target: Engine, model: LoadedModel, prompt: list[int], count: int) -> None:
    tokens = tuple(token % model.vocab for token in prompt)
    request = Request(model.name, tokens, count, GREEDY, return_logprob=False, ignore_eos=True)
    target.add_request(request, lambda output: False)


def measure(model: LoadedModel, rows: int, count: int) -> Timing:
    prompt = [100 + i * 37 % 2000 for i in range(512)]
    one = engine(model, 1)
    add(one, model, prompt, 1)
    start = time.perf_counter()
    while one.has_unfinished:
        one.step()
    prefill = time.perf_counter() - start
    several = engine(model, rows)
    for row in range(rows):
        add(several, model, [*prompt[:31], 200 + row], count + WARM + 64)
    while len(several.running) < rows or several.metrics.computed_tokens < 32 * rows + WARM * rows:
        several.step()
    steps = []
    for _ in range(count):
        start = time.perf_counter()
        several.step()
        steps.append(time.perf_counter() - start)
    return Timing(1e3 * median(steps), 1e3 * prefill)


def llama_cpp(folder: str, path: Path, threads: int, rows: int, count: int) -> Timing:
    script = ROOT / "tests" / "interop" / "gguf" / "llama_cpp_speed.mjs"
    command = ["node", str(script), folder, str(path), str(threads), str(rows), str(count)]
    answer = json.loads(run_program(command, check=True, capture_output=True, text=True).stdout)
    return Timing(answer["step"], answer["prefill"])


def report(title: str, timings: dict[str, list[Timing]]) -> None:
    """Medians, and the medians and ranges of the ratios to the first of `timings`, turn by turn."""
    first = next(iter(timings.values()))
    for name, each in timings.items():
        ratios = [[mine / own for mine, own in zip(a, b, strict=True)] for a, b in zip(each, first, strict=True)]
        steps, prefills = zip(*ratios, strict=True)
        step, prefill = (median(times) for times in zip(*each, strict=True))
        spreads = [f"ratio {median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in (steps, prefills)]
        print(
            f"{title}, {name}: step {step:.2f} ms, {spreads[0]}; 512 tokens {prefill:.0f} ms, {spreads[1]}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--weights", default="auto,float32")
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--llama-cpp")
    options = parser.parse_args()
    request_strict_mode()
    torch.set_num_threads(options.threads)
    models = {each: load_model(options.model, "model", weights=each) for each in options.weights.split(",")}
    for rows in map(int, options.rows.split(",")):
        timings: dict[str, list[Timing]] = {}
        for _ in range(options.turns):
            for name, model in models.items():
                timings.setdefault(name, []).append(measure(model, rows, options.tokens))
            if options.llama_cpp:
                peer = llama_cpp(options.llama_cpp, options.model, options.threads, rows, options.tokens)
                timings.setdefault("llama.cpp", []).append(peer)
        report(f"{rows} rows, {options.threads} threads", timings)


if __name__ == "__main__":
    main()
