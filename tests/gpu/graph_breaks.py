"""Graph breaks of the decode step, as torch.compile traces it: `python -m tests.gpu.graph_breaks PATH...`

The step is `next_logits` of one token a row on a machine without a C compiler, so that dispatch takes the kernels made
of torch's operators, as it does on CUDA without Triton. Nothing is compiled: `torch._dynamo.explain` only traces.
Prints a JSON line for each recipe: graphs, breaks, operators, and the breaks by reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from synthe_core.hardware import probe as probing
from synthe_core.hardware.probe import probe
from synthe_core.model.classifier import build_model
from synthe_core.recipe.schema import Recipe
from tests.paths import RECIPES

VOCAB, ROWS, PROMPT = 512, 2, 40


@contextmanager
def without_native_kernels() -> Iterator[None]:
    """Within the block, dispatch sees a machine without a C compiler."""
    here = probe()
    probing._probed[0] = dataclasses.replace(here, compiler=None)
    try:
        yield
    finally:
        probing._probed[0] = here


def decode_breaks(recipe: Recipe) -> dict[str, Any]:
    """The graphs that the decode step of a recipe's model falls into."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model: Any = build_model(recipe.model, VOCAB).eval()
    tokens = torch.randint(VOCAB, (ROWS, PROMPT + 1))
    with without_native_kernels(), torch.no_grad():
        _, state = model.next_logits(tokens[:, :PROMPT])
        explained: Any = torch._dynamo.explain(lambda token, before: model.next_logits(token, before))(
            tokens[:, PROMPT:], state
        )
    reasons = Counter(_reason(each) for each in explained.break_reasons)
    return {
        "graphs": explained.graph_count,
        "breaks": explained.graph_break_count,
        "operators": explained.op_count,
        "reasons": dict(reasons.most_common()),
    }


def _reason(broken: Any) -> str:
    frames = [each for each in broken.user_stack if "synthe_core" in each.filename]
    where = f"{frames[-1].filename.rpartition('synthe_core/')[2]}:{frames[-1].lineno}" if frames else "?"
    return f"{where} {str(broken.reason).strip().splitlines()[0][:120]}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    for name in options.recipes:
        path = Path(name) if Path(name).exists() else RECIPES / f"{name}.yaml"
        recipe = Recipe.load(str(path), options.set)
        try:
            print(json.dumps({"recipe": name, **decode_breaks(recipe)}), flush=True)
        except Exception as error:
            print(json.dumps({"recipe": name, "error": f"{type(error).__name__}: {error}"[:300]}), flush=True)


if __name__ == "__main__":
    main()
