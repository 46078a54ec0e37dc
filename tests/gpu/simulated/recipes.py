"""Passes of recipes on the simulated device: `python -m tests.gpu.simulated.recipes [--time T] PATH...`

Prints a JSON line for each recipe: for forward-and-backward, prefill and decode the launches, the host waits and the
copies by line, or the error. `--set model.blocks=2` and the like change the recipe.
"""

from __future__ import annotations

import argparse
import json
import traceback
from pathlib import Path
from typing import Any

from tests.gpu.simulated import machine  # isort: skip  # noqa: F401  (before torch)

import torch

from synthe_core.layers.learner import apply_buffer_updates
from synthe_core.model.classifier import Classifier, build_model
from synthe_core.ops.mixed_linear import cast_once
from synthe_core.recipe.schema import Recipe
from tests.gpu.simulated.counts import Counts, counting
from tests.gpu.simulated.tensor import on_device, simulated, to_device
from tests.paths import RECIPES

VOCAB = 512
ROWS = 2


def passes(recipe: Recipe, time: int) -> dict[str, Any]:
    """By phase: {"launches", "forward", "waits", "copies"}, or {"error"} with its line of the project."""
    torch.manual_seed(0)
    model: Any = to_device(build_model(recipe.model, VOCAB, recipe.runtime.recompute))
    phases = {"train": _train} if isinstance(model, Classifier) else {"train": _train, "decode": _decode}
    results: dict[str, Any] = {}
    for name, run in phases.items():
        try:
            with on_device():
                results |= run(model, time)
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"[:300], "line": _where(error)}
    return results


def _train(model: Any, time: int) -> dict[str, Any]:
    """The second forward and backward pass under autocast; the first one may fill caches."""
    model.train()
    tokens = simulated(torch.randint(VOCAB, (ROWS, time)))
    targets = tokens
    if isinstance(model, Classifier):
        labels = torch.full((ROWS, time), -100)
        labels[:, -1] = 0
        targets = simulated(labels)
    for _ in range(2):
        with counting() as counts, cast_once(model.parameters(), torch.bfloat16):
            with torch.autocast("cuda", torch.bfloat16):
                loss, _state = model.loss(tokens, targets)
                objective = loss.objective
            forward = counts.launches
            objective.backward()
        missing = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.device != p.device]
        assert not missing, f"gradients on another device: {missing}"
        for parameter in model.parameters():
            parameter.grad = None
        apply_buffer_updates(loss.buffer_updates)
    return {"train": _figures(counts) | {"forward": forward}}


def _decode(model: Any, time: int) -> dict[str, Any]:
    """A prompt, then single tokens; the third is counted."""
    model.eval()
    tokens = simulated(torch.randint(VOCAB, (ROWS, time)))
    with torch.no_grad():
        with counting() as prefill:
            _, state = model.next_logits(tokens[:, : time // 2])
        lengths = simulated(torch.tensor([1] * ROWS))
        model.next_logits(tokens[:, :1], state, lengths)  # a padded pass, which must not raise
        for index in range(3):
            with counting() as decode:
                logits, state = model.next_logits(tokens[:, index : index + 1], state)
    assert logits.device.type == "cuda"
    return {"prefill": _figures(prefill), "decode": _figures(decode)}


def _figures(counts: Counts) -> dict[str, Any]:
    return {"launches": counts.launches, "waits": dict(counts.waits), "copies": dict(counts.copies)}


def _where(error: BaseException) -> str:
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "synthe_core" in each.filename]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename.rpartition('synthe_core/')[2]}:{last.lineno} {last.line}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--time", type=int, default=96)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    for name in options.recipes:
        path = Path(name) if Path(name).exists() else RECIPES / f"{name}.yaml"
        try:
            recipe = Recipe.load(str(path), options.set)
        except Exception:
            recipe = Recipe.load(str(path), [])
        print(json.dumps({"recipe": name, **passes(recipe, options.time)}), flush=True)


if __name__ == "__main__":
    main()
