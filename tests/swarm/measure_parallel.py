"""Measures what several specialists cost beside one: `python -m tests.swarm.measure_parallel`.

Six specialists with adapters of rank 8 on SmolLM2-135M-Instruct, 64 tokens each: one answer, six at once as rows of one
batch, one with another adapter than the answer before, a fused one, and one of the base, in turns; the median of the
ratios to the first. Routing is timed on the questions of MT-Bench.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import psutil
import torch

from synthe_core.adapters.spec import LoraSpec
from synthe_core.adapters.targets import new_adapter
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.load import load_model
from synthe_core.swarm.features import SAMPLES
from synthe_core.swarm.generation import Cancellation, Generation
from synthe_core.swarm.models import BASE
from synthe_core.swarm.router.router import Router
from synthe_core.swarm.spec import SwarmSpec
from synthe_core.swarm.text_embedding import TextEmbedder
from tests.paths import SHARED

COUNT, TOKENS, TURNS = 6, 64, 5


def main() -> None:
    model = load_model(next((SHARED / "models" / "smollm2-135m-instruct").glob("*.gguf")), BASE, weights="auto")
    process = psutil.Process()
    prompt = tuple(model.tokenizer.encode("Explain how a bill becomes law, step by step, in plain words."))

    def request(name: str) -> Request:
        return Request(name, prompt, TOKENS, SamplingParams(temperature=0), ignore_eos=True)

    with AsyncEngine([model], cache_bytes=0) as engine, Generation(engine, [request(BASE)], Cancellation()) as running:
        list(running)
    alone = process.memory_info().rss
    for index in range(COUNT):
        torch.manual_seed(index)
        adapter = new_adapter(model.model, LoraSpec(rank=8))
        for factors in adapter.maps.values():
            torch.nn.init.normal_(factors.lora_B, std=0.01)
        model.adapters[f"a{index}"] = model.compact_adapter(adapter)
    with AsyncEngine([model], cache_bytes=0) as engine:

        def seconds(names: list[str], weights: list[float] | None = None) -> float:
            began = time.perf_counter()
            with Generation(engine, [request(name) for name in names], Cancellation(), weights) as generation:
                for _ in generation:
                    pass
            return time.perf_counter() - began

        each = [f"{BASE}:a{index}" for index in range(COUNT)]
        seconds(each)  # warms up, and attaches the adapters
        print(f"memory: {process.memory_info().rss / alone:.2f} of the base alone ({alone / 2**20:.0f} MiB)")
        ratios: dict[str, list[float]] = {"six at once": [], "another adapter": [], "fused of two": [], "base": []}
        ones = []
        for _ in range(TURNS):
            ones.append(one := seconds(each[:1]))
            ratios["six at once"].append(seconds(each) / one)
            ratios["another adapter"].append(seconds(each[1:2]) / one)
            ratios["fused of two"].append(seconds(each[:2], [1, 1]) / one)
            ratios["base"].append(seconds([BASE]) / one)
        print(f"one answer of {TOKENS} tokens: {statistics.median(ones):.2f} s")
        for name, values in ratios.items():
            print(f"{name}: {statistics.median(values):.2f} of one ({min(values):.2f} to {max(values):.2f})")
        measure_routing(engine, statistics.median(ones))


def measure_routing(engine: AsyncEngine, answer: float) -> None:
    """The share of an answer's time that the decision takes."""
    names = {f"s{index}": {"capabilities": text} for index, text in enumerate(SAMPLES[:COUNT])}
    router = Router(SwarmSpec.model_validate({"base": BASE, "specialists": names}), TextEmbedder(engine, BASE))
    path: Path = SHARED / "data" / "eval" / "mt_bench_question.jsonl"
    texts = [json.loads(line)["turns"][0] for line in path.read_text(encoding="utf-8").splitlines()[:20]]
    taken = [router.route(text)[0].seconds for text in texts]
    share = statistics.median(taken) / answer
    print(f"routing: {1000 * statistics.median(taken):.0f} ms, {share:.1%} of an answer of {TOKENS} tokens")


if __name__ == "__main__":
    main()
