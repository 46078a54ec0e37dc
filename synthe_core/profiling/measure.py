"""What a real step takes: run in a process of its own, whose memory the system or the CUDA allocator counts.

On a CPU that is the process's resident memory beyond an idle one's. glibc's allocator keeps much of what was freed for
later; in the measured process it gives large blocks back at once (`FRANK`), so that what is counted is what the work
holds, as CUDA's counter has it. A process with glibc's own settings was seen to be up to 15% larger.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from synthe_core.errors import InputError, WorkError
from synthe_core.hardware.probe import probe
from synthe_core.model.classifier import build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.profiling.peak_memory import peak_bytes
from synthe_core.recipe.accounting import vocabulary_of
from synthe_core.recipe.schema import Recipe
from synthe_core.training.gradients import accumulate_gradients, is_out_of_memory
from synthe_core.training.objectives import default_objective
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import settings
from synthe_core.training.tuning import PassTimer

FRANK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
STEPS = 2  # the optimizer's state is made in the first


def measured(
    recipe: Recipe,
    *,
    rows: int,
    length: int,
    precision: str,
    train: bool = True,
    snapshot: Path | None = None,
    limit: int | None = None,
) -> int | None:
    """Bytes that a real step (or, without `train`, a prompt taken in) holds beyond an idle process; None where the
    system does not tell.

    snapshot: where torch writes its memory history on CUDA, for https://pytorch.org/memory_viz.
    limit:    bytes of address space that the process may take, on a CPU; None for any.
    Raises WorkError where memory runs out.
    """
    order = {
        "recipe": recipe.model_dump(mode="json"),
        "rows": rows,
        "length": length,
        "precision": precision,
        "train": train,
        "snapshot": None if snapshot is None else str(snapshot),
        "limit": limit,
    }
    done = subprocess.run(
        [sys.executable, "-m", "synthe_core.profiling.measure"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        env=FRANK
        | os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_root()), os.environ.get("PYTHONPATH")]))},
    )
    told = done.stdout.strip().splitlines()
    if done.returncode == 0 and told:
        return json.loads(told[-1])["bytes"]
    last = (done.stderr.strip().splitlines() or ["it was ended by the system, for want of memory perhaps"])[-1]
    if done.returncode < 0 or "out of memory" in last:
        raise WorkError(f"out of memory with {rows} rows of {length} tokens", "fewer rows need less")
    raise WorkError(f"the measured step failed: {last}")


def _root() -> Path:
    return Path(__file__).parents[2]


def run(order: dict[str, Any]) -> int | None:
    """The work of the child process."""
    recipe = Recipe.model_validate(order["recipe"])
    chosen = settings(recipe, probe())
    chosen.precision, chosen.micro_batch = order["precision"], order["rows"]
    if recipe.runtime.threads:
        torch.set_num_threads(recipe.runtime.threads)
    kind = chosen.device.type
    if order["snapshot"] and kind != "cuda":
        raise InputError("only CUDA has memory snapshots", "leave out --snapshot")
    torch.manual_seed(recipe.seed)
    vocab, batch = vocabulary_of(recipe), max(order["rows"], recipe.train.batch) if order["train"] else order["rows"]
    _warm(recipe, vocab, chosen, order["train"])
    idle = psutil.Process().memory_info().rss
    if order["limit"] is not None:
        import resource

        taken = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (taken + order["limit"], resource.RLIM_INFINITY))
    if order["snapshot"]:
        torch.cuda.memory._record_memory_history()
    most = peak_bytes(lambda: _work(recipe, vocab, batch, order, chosen), kind)
    if order["snapshot"]:
        torch.cuda.memory._dump_snapshot(order["snapshot"])
    return None if most is None else most - (0 if kind == "cuda" else idle)


def _work(recipe: Recipe, vocab: int, batch: int, order: dict[str, Any], chosen: Any) -> None:
    model = build_model(recipe.model, vocab, recipe.runtime.recompute).to(chosen.device)
    data = PassTimer(model, chosen, order["length"]).batch(batch)
    if not order["train"]:
        model.eval()
        with torch.no_grad(), chosen.context.activate():
            inputs = data.inputs.to(chosen.device)
            state = model.next_logits(inputs)[1] if isinstance(model, LanguageModel) else model(inputs)
            if isinstance(model, LanguageModel):
                model.next_logits(inputs[:, :1], state)
        return
    optimizer, objective = Optimizer(model, recipe.train), default_objective(model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        accumulate_gradients(objective, model, data, chosen, sequence=order["length"])
        torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        optimizer.step(1e-3)


def _warm(recipe: Recipe, vocab: int, chosen: Any, train: bool) -> None:
    """Loads libraries, compiles kernels and starts threads, none of which is the recipe's own; gives back the rest."""
    spec = recipe.model.model_copy(update={"blocks": 1 + (recipe.model.depth.min if recipe.model.depth else 0)})
    model = build_model(spec, min(vocab, 512), recipe.runtime.recompute).to(chosen.device)
    data = PassTimer(model, chosen, 16).batch(1)
    accumulate_gradients(default_objective(model), model, data, chosen, sequence=16)
    Optimizer(model, recipe.train).step(0.0)
    del model, data
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another system's C library
        ctypes.CDLL(None).malloc_trim(0)
    if chosen.device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps({"bytes": run(json.loads(sys.stdin.read()))}) + "\n")
    except Exception as error:
        sys.exit("out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}")
