"""Steps of transformers' `generate`, in a process of its own: products there are in no mode that ours asks for.

It reads a JSON object from stdin, {"model", "threads", "prompt", "prefill"}, answers with the version and precision,
and then reads {"rows", "tokens"} or {"prefill": true} and answers {"seconds"}, a JSON object a line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


class StepTimes:
    """A stopping criterion that stops nothing and records when each token of all rows has come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: Any, scores: Any, **options: Any) -> Any:
        import torch

        self.times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool)


def load(path: Path) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if path.is_file():
        return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    return transformers.AutoModelForCausalLM.from_pretrained(path)


def generate(model: Any, prompts: list[list[int]], tokens: int) -> list[float]:
    """The start, and when each step had ended."""
    import torch
    from transformers import StoppingCriteriaList

    ids, steps = torch.tensor(prompts), StepTimes()
    begun = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens,
            pad_token_id=0, stopping_criteria=StoppingCriteriaList([steps]),
        )  # fmt: skip
    return [begun, *steps.times]


def answer(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> None:
    job = json.loads(sys.stdin.readline())
    import torch
    import transformers

    torch.set_num_threads(job["threads"])
    try:
        model = load(Path(job["model"])).eval()
    except Exception as error:
        answer({"error": " ".join(str(error).split())[:300] or type(error).__name__})
        return
    precision = str(model.dtype).removeprefix("torch.")
    answer({"version": transformers.__version__, "precision": precision})
    for line in sys.stdin:
        wanted = json.loads(line)
        if "prefill" in wanted:
            begun, first = generate(model, [wanted["prefill"]], 1)[:2]
            seconds = first - begun
        else:
            times = generate(model, wanted["prompts"], wanted["tokens"])
            seconds = (times[-1] - times[2]) / (len(times) - 3)
        answer({"seconds": seconds})


if __name__ == "__main__":
    main()
