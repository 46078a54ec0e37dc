"""How much sooner texts are complete with drafts: the same requests without, in turns.

python -m tests.inference.measure_speculation MODEL [--speculate ngram] [--rows 1,4] [--threads 1] [--turns 7]
    [--tokens 200] [--weights auto] [--tasks edit,free] [--prompts FILE...] [--cpu-time]

Greedy, to the end of the answer. By default passages of the documentation are repeated, edited and summarised; with
files, each is a prompt. Prints the median tokens a second of both from the first token to the last, the median of the
turns' ratios, and whether the texts were the same; at the end what passes cost. With --cpu-time, which is for one
thread on a busy machine, seconds are the process's own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from synthe_core.data import chat_template
from synthe_core.hardware.mkl import request_strict_mode
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.inference.speculation.proposer import Speculation
from synthe_core.inference.speculation.settings import SpeculationSettings, speculate
from synthe_core.interop.load import load_model
from tests.paths import ROOT

TASKS = {
    "repeat": "Repeat the following text word for word:\n\n",
    "edit": "Replace the word 'model' by 'network' in the following text and write the whole text again:\n\n",
    "summarise": "Summarise the following text, and quote its important sentences:\n\n",
    "free": "Write a long story about a lighthouse keeper and the sea. Do not mention this text:\n\n",
}
PAGES = ("learners.md", "operators.md", "merge-methods.md", "objectives.md")


def passages(count: int, characters: int = 1500) -> list[str]:
    texts = [(ROOT / "docs" / "contributing" / page).read_text(encoding="utf-8") for page in PAGES]
    return [texts[row % len(texts)][200 * row :][:characters] for row in range(count)]


def encoded(model: LoadedModel, text: str) -> tuple[int, ...]:
    tokenizer = model.tokenizer
    if tokenizer.chat_template is None:
        return tuple(tokenizer.encode(text))
    return tuple(tokenizer.encode_marked(chat_template.render(tokenizer, [{"role": "user", "content": text}])))


def run(
    model: LoadedModel, prompts: list[tuple[int, ...]], count: int, clock: Callable[[], float]
) -> tuple[float, list[list[int]], int, int]:
    """Seconds from the moment that all have a token to the end; the texts; drafted and accepted tokens."""
    engine = Engine([model], max_num_seqs=len(prompts), cache_bytes=0, max_state_bytes=1 << 40)
    sequences = [
        engine.add_request(
            Request(model.name, prompt, count, SamplingParams(temperature=0), return_logprob=False),
            lambda output: False,
        )
        for prompt in prompts
    ]
    while not all(each.output_token_ids for each in sequences):
        engine.step()
    start = clock()
    while engine.has_unfinished:
        engine.step()
    seconds = clock() - start
    drafted, accepted = (sum(getattr(s, f"num_{name}_tokens") for s in sequences) for name in ("drafted", "accepted"))
    return seconds, [each.output_token_ids for each in sequences], drafted, accepted


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--speculate", default="ngram")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--rows", default="1")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--prompts", type=Path, nargs="*")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    request_strict_mode()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, "model", weights=options.weights)
    settings = SpeculationSettings.parse(options.speculate)
    speculate(model, settings, lambda name: load_model(Path(name), name, weights=options.weights))
    assert model.speculation is not None
    proposer = model.speculation.proposer
    for rows in map(int, options.rows.split(",")):
        texts = [path.read_text(encoding="utf-8") for path in options.prompts or []]
        groups = (
            {"files": [encoded(model, text) for text in texts[:rows]]}
            if texts
            else {
                task: [encoded(model, TASKS[task] + text) for text in passages(rows)]
                for task in options.tasks.split(",")
            }
        )
        speculation = Speculation(proposer, clock=clock)
        for task, prompts in groups.items():
            times: list[tuple[float, float]] = []
            same, drafted, accepted = True, 0, 0
            for _ in range(options.turns):
                model.speculation = None
                plain, expected, _, _ = run(model, prompts, options.tokens, clock)
                model.speculation = speculation
                fast, written, *counts = run(model, prompts, options.tokens, clock)
                times.append((plain, fast))
                same &= expected == written
                drafted, accepted = drafted + counts[0], accepted + counts[1]
            ratios = [plain / fast for plain, fast in times]
            tokens = sum(map(len, expected)) - rows
            print(
                f"{task}, {rows} rows, {options.threads} threads: without {tokens / median(t for t, _ in times):.0f} "
                f"tokens/s, with {tokens / median(t for _, t in times):.0f}, ratio {median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}), same: {same}, "
                f"accepted {accepted} of {drafted} drafted",
                flush=True,
            )
        costs = {n: f"{1e3 * speculation.costs.estimate(n):.1f}" for n in (1, 2, 4, 8, 12, 17) if n >= rows}
        print(f"milliseconds of a pass by its tokens: {costs}", flush=True)


if __name__ == "__main__":
    main()
