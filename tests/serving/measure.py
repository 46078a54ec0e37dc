"""The figures of RESULTS.md on serving, each paired in one process: `python -m tests.serving.measure PART MODEL...`.

throughput OURS THEIRS   32 texts at once: the engine on OURS and on THEIRS, a Hugging Face folder, and `generate`
decode OURS              a token after 1,024 and after 32,768 tokens of context, in a batch of 1
turns OURS               a conversation of 20 turns: tokens read and seconds to the first new one, turn by turn
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Finished, PrefillFinished, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.load import load_model
from synthe_core.model.prefill import prefill

GREEDY = SamplingParams(temperature=0)


def opened(path: str) -> LoadedModel:
    folder = Path(path)
    return load_model(folder)


def paired(candidates: dict[str, Callable[[], float]], turns: int) -> None:
    """Prints each one's median, and that of its ratios to the first, turn by turn. The first turn is left out."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(turns + 1):
        for name, run in candidates.items():
            seconds = run()
            if turn:
                taken[name].append(seconds)
                print(f"  turn {turn}  {name}  {seconds:.3f}", flush=True)
    first = next(iter(taken.values()))
    for name, each in taken.items():
        ratio = statistics.median(b / a for a, b in zip(first, each, strict=True))
        print(f"{name:<40} median {statistics.median(each):8.3f} s   {ratio:6.2f} times the first", flush=True)


def throughput(ours: str, theirs: str, rows: int = 32, read: int = 64, write: int = 32, turns: int = 5) -> None:
    import transformers

    peer = transformers.AutoModelForCausalLM.from_pretrained(theirs).eval()
    served = {ours: opened(ours), theirs: opened(theirs)}
    drawn = random.Random(0)

    def texts() -> list[list[int]]:
        return [[drawn.randrange(8000) for _ in range(read)] for _ in range(rows)]

    def engine(path: str) -> Callable[[], float]:
        running = AsyncEngine([served[path]], cache_bytes=0)
        name = served[path].name

        def run() -> float:
            requests = [Request(name, tuple(text), write, GREEDY, ignore_eos=True) for text in texts()]
            begun = time.perf_counter()
            tickets = [running.submit(request) for request in requests]
            written = sum(isinstance(event, TokenOutput) for ticket in tickets for event in ticket)
            assert written == rows * write, written
            return time.perf_counter() - begun

        return run

    @torch.inference_mode()
    def generate() -> float:
        given = torch.tensor(texts())
        begun = time.perf_counter()
        generated = peer.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=write, min_new_tokens=write, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        assert generated.shape == (rows, read + write)
        return time.perf_counter() - begun

    names = {f"engine, {Path(path).name}": engine(path) for path in (ours, theirs)}
    paired({**names, f"generate, {Path(theirs).name}": generate}, turns)


@torch.inference_mode()
def decode(ours: str, turns: int = 7, tokens: int = 16) -> None:
    served = opened(ours)
    states = {}
    for length in (1024, 32768):
        text = torch.randint(8000, (1, length), generator=torch.Generator().manual_seed(0))
        states[length] = prefill(served.model, text)[1]

    def after(length: int) -> Callable[[], float]:
        def run() -> float:
            state, begun = states[length], time.perf_counter()
            for token in range(tokens):
                _, state = served.model.next_logits(torch.tensor([[token]]), state)
            return time.perf_counter() - begun

        return run

    with served.activate(None):
        paired({f"{tokens} tokens after {length:,}": after(length) for length in states}, turns)


def turns(ours: str, count: int = 20, read: int = 64, write: int = 32) -> None:
    served = opened(ours)
    drawn = random.Random(0)
    cached, plain = (AsyncEngine([served], cache_bytes=size) for size in (1 << 30, 0))
    past: list[int] = []
    for turn in range(1, count + 1):
        past += [drawn.randrange(8000) for _ in range(read)]
        request = Request(served.name, tuple(past), write, GREEDY, ignore_eos=True)
        outputs: list[list[int]] = []
        for engine in (cached, plain):
            begun, first, tokens, known = time.perf_counter(), 0.0, [], 0
            for event in engine.submit(request):
                if isinstance(event, PrefillFinished):
                    known = event.num_cached_tokens
                elif isinstance(event, TokenOutput):
                    first = first or time.perf_counter() - begun
                    tokens.append(event.token_id)
                elif isinstance(event, Finished):
                    assert event.reason == "length", event
            outputs.append(tokens)
            name = "cached" if engine is cached else "anew"
            print(
                f"turn {turn:2}  {name:6}  read {len(past) - known:5} of {len(past):5}  first {first:.3f} s", flush=True
            )
        assert outputs[0] == outputs[1], "the cache changes nothing"
        past += outputs[0]


if __name__ == "__main__":
    part, *given = sys.argv[1:]
    torch.set_num_threads(2)
    arguments = [int(each) if each.isdigit() else each for each in given]
    {"throughput": throughput, "decode": decode, "turns": turns}[part](*arguments)  # type: ignore[operator]
