"""How long a pass of one token a row takes with a recipe's model of random weights, head included.

python -m tests.inference.measure_passes recipes/60m-flat.yaml [--rows 1,8,32] [--weights float32,int4,copy] [--turns 9]
    [--threads 1] [--cpu-time]

`operators` is float32 without the fused pass. Formats take turns, and so does `copy`: copying as many bytes as the
model of the last format has. Medians of the turns, and of the ratios to the first format's. --cpu-time: the process's
own seconds, for one thread beside other programs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.model.language_model import LanguageModel
from synthe_core.quantization.matrix import quantized_bytes
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, save, weights
from synthe_core.storage.manifest import Manifest

OPERATORS, COPY = "operators", "copy"
PASSES, WARM = 10, 3


def written(path: Path, recipe: Recipe, vocab: int) -> Path:
    torch.manual_seed(0)
    model = LanguageModel(recipe.model, vocab)
    save(path, recipe=recipe, vocab=vocab, tensors=weights(model), manifest=Manifest(), tokenizer=ByteTokenizer())
    return path


def stored_bytes(model: torch.nn.Module) -> int:
    return sum(each.nbytes for each in model.parameters()) + quantized_bytes(model)


def milliseconds(model: LoadedModel, rows: int, is_fused: bool, clock: Callable[[], float]) -> float:
    """The median of some passes after a few tokens."""
    tokens = torch.randint(model.vocab, (rows, 8), generator=torch.Generator().manual_seed(1))
    following, times = tokens[:, :1], []
    with torch.inference_mode(), model.activate():
        state = model.forward(tokens, None).state
        for _ in range(WARM + PASSES):
            begun = clock()
            hidden: Tensor
            if is_fused:
                hidden, state, _ = model.forward(following, state)
            else:
                hidden, state, _ = model.model.hidden(following, state)
            model.logits(hidden[:, 0])
            times.append(clock() - begun)
    return 1e3 * median(times[WARM:])


def copying(nbytes: int, clock: Callable[[], float]) -> float:
    source, target = torch.ones(nbytes // 4), torch.empty(nbytes // 4)
    times = []
    for _ in range(PASSES):
        begun = clock()
        target.copy_(source)
        times.append(clock() - begun)
    return 1e3 * median(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--weights", default="operators,float32")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    names = options.weights.split(",")
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory() as folder:
            path = written(Path(folder) / "model", Recipe.load(recipe), options.vocab)
            formats = {name: "float32" if name == OPERATORS else name for name in names if name != COPY}
            models: dict[str, Any] = {
                name: LoadedModel.from_checkpoint(Checkpoint.open(path), "model", weights=form)
                for name, form in formats.items()
            }
        nbytes = stored_bytes(list(models.values())[-1].model)
        for rows in map(int, options.rows.split(",")):
            times: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(options.turns):
                for name in names:
                    is_fused = name != OPERATORS
                    own = copying(nbytes, clock) if name == COPY else milliseconds(models[name], rows, is_fused, clock)
                    times[name].append(own)
            for name, each in times.items():
                ratios = [first / mine for first, mine in zip(times[names[0]], each, strict=True)]
                spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"{recipe}, {rows} rows, {name}: {median(each):.2f} ms, {names[0]} {spread}", flush=True)


if __name__ == "__main__":
    main()
