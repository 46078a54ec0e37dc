"""Launches of a token decoded in place, uncaptured: `python -m tests.gpu.simulated.in_place_step RECIPE...`

Of all blocks of a recipe, with our Triton kernels; prints a JSON line for each.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from tests.gpu.simulated import with_triton  # isort: skip  # noqa: F401  (before torch)

import torch

from synthe_core.inference.captured_decode import CapturedStep, refusal, uncaptured
from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe.schema import Recipe
from tests.gpu.simulated.counts import counting
from tests.gpu.simulated.tensor import on_device, simulated, to_device
from tests.paths import RECIPES

VOCAB, ROWS = 512, 2


def figures(name: str) -> dict[str, Any]:
    model: Any = to_device(LanguageModel(Recipe.load(str(RECIPES / f"{name}.yaml"), []).model, VOCAB)).eval()
    with on_device(), torch.no_grad():
        if (reason := refusal(model)) is not None:
            return {"recipe": name, "refusal": reason}
        step = CapturedStep(model, ROWS, uncaptured)
        tokens, state = simulated(torch.zeros(ROWS, 1, dtype=torch.int64)), model.init_state(ROWS)
        for _ in range(3):
            with counting() as counts:
                state = step(tokens, state).state
    return {"recipe": name, "launches": counts.launches, "waits": counts.waits.total()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="+")
    for name in parser.parse_args().recipes:
        print(json.dumps(figures(name)), flush=True)


if __name__ == "__main__":
    main()
