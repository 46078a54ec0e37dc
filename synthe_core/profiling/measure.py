"""The memory of a real step: run in a process of its own, counted by the system or by the CUDA allocator.

On a CPU that is the process's resident memory beyond that of an idle process. glibc's allocator caches freed blocks; in
the measured process it returns those of 32 KiB and more at once (`MALLOC_SETTINGS`; an adapter's factors are about as
large), so that only allocated memory counts, as with CUDA's counter. A process with glibc's default settings takes up
to 15% more.
"""

from __future__ import annotations

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
from synthe_core.hardware.free_memory import return_freed_memory
from synthe_core.hardware.probe import probe
from synthe_core.model.classifier import build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.profiling.adapted import FrozenBase
from synthe_core.profiling.peak_memory import peak_bytes
from synthe_core.recipe.accounting import vocabulary_of
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.gradients import accumulate_gradients, is_out_of_memory
from synthe_core.training.objectives import objective_for
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import settings_for
from synthe_core.training.tuning import PassTimer

MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_TRIM_THRESHOLD_": "32768"}
STEPS = 2  # the first one allocates the optimizer's state


def measure_step(
    recipe: Recipe,
    *,
    rows: int,
    length: int,
    precision: str,
    train: bool = True,
    snapshot: Path | None = None,
    limit: int | None = None,
    model: Path | None = None,
) -> int | None:
    """Peak bytes of a real step (or, without `train`, of the prefill of a prompt) beyond an idle process; None if the
    system does not report them.

    snapshot: the file for torch's memory history on CUDA, for https://pytorch.org/memory_viz.
    limit:    bytes of address space for the process, on a CPU; None for no limit.
    model:    the checkpoint under an adapter; `train.lora.quantize=as_stored` needs it.
    Raises WorkError if memory runs out.
    """
    job = {
        "recipe": recipe.model_dump(mode="json"),
        "rows": rows,
        "length": length,
        "precision": precision,
        "train": train,
        "snapshot": None if snapshot is None else str(snapshot),
        "limit": limit,
        "model": None if model is None else str(model),
    }
    done = subprocess.run(
        [sys.executable, "-m", "synthe_core.profiling.measure"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=MALLOC_SETTINGS
        | os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_root()), os.environ.get("PYTHONPATH")]))},
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])["bytes"]
    last = (done.stderr.strip().splitlines() or ["the system ended it, perhaps because memory ran out"])[-1]
    if done.returncode < 0 or "out of memory" in last:
        raise WorkError(f"out of memory with {rows} rows of {length} tokens", "fewer rows need less")
    raise WorkError(f"the measured step failed: {last}")


def _root() -> Path:
    return Path(__file__).parents[2]


def run(job: dict[str, Any]) -> int | None:
    """The work of the child process."""
    recipe = Recipe.model_validate(job["recipe"])
    settings = settings_for(recipe, probe())
    settings.precision, settings.micro_batch = job["precision"], job["rows"]
    if recipe.runtime.threads:
        torch.set_num_threads(recipe.runtime.threads)
    kind = settings.device.type
    if job["snapshot"] and kind != "cuda":
        raise InputError("only CUDA has memory snapshots", "leave out --snapshot")
    torch.manual_seed(recipe.seed)
    vocab, batch = vocabulary_of(recipe), max(job["rows"], recipe.train.batch) if job["train"] else job["rows"]
    base = None
    if job["train"] and recipe.train.lora is not None:
        base = FrozenBase(recipe, None if job["model"] is None else Checkpoint.open(job["model"]))
    _warm_up(recipe, vocab, settings, base)
    idle = psutil.Process().memory_info().rss
    if job["limit"] is not None:
        import resource

        taken = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (taken + job["limit"], resource.RLIM_INFINITY))
    if job["snapshot"]:
        torch.cuda.memory._record_memory_history()
    peak = peak_bytes(lambda: _work(recipe, vocab, batch, job, settings, base), kind)
    if job["snapshot"]:
        torch.cuda.memory._dump_snapshot(job["snapshot"])
    return None if peak is None else peak - (0 if kind == "cuda" else idle)


def _work(recipe: Recipe, vocab: int, batch: int, job: dict[str, Any], settings: Any, base: FrozenBase | None) -> None:
    if base is None:
        model = build_model(recipe.model, vocab, recipe.runtime.recompute).to(settings.device)
    else:
        model = base.build(recipe.model, vocab, settings.device)
    return_freed_memory()
    data = PassTimer(model, settings, job["length"]).batch(batch)
    if not job["train"]:
        model.eval()
        with torch.no_grad(), settings.context.activate():
            inputs = data.inputs.to(settings.device)
            state = model.next_logits(inputs)[1] if isinstance(model, LanguageModel) else model(inputs)
            if isinstance(model, LanguageModel):
                model.next_logits(inputs[:, :1], state)
        return
    optimizer, objective = Optimizer(model, recipe.train), objective_for(model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        accumulate_gradients(objective, model, data, settings, sequence=job["length"])
        torch.nn.utils.get_total_norm([p.grad for p in optimizer.parameters if p.grad is not None])
        optimizer.step(1e-3)


def _warm_up(recipe: Recipe, vocab: int, settings: Any, base: FrozenBase | None) -> None:
    """Loads libraries, compiles kernels and starts threads, which do not count; frees everything else."""
    spec = recipe.model.model_copy(update={"blocks": 1 + (recipe.model.depth.min if recipe.model.depth else 0)})
    if base is None:
        model = build_model(spec, min(vocab, 512), recipe.runtime.recompute).to(settings.device)
    else:
        model = base.build(spec, vocab, settings.device)
    data = PassTimer(model, settings, 16).batch(1)
    accumulate_gradients(objective_for(model), model, data, settings, sequence=16)
    Optimizer(model, recipe.train).step(0.0)
    del model, data
    gc.collect()
    return_freed_memory()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps({"bytes": run(json.loads(sys.stdin.read()))}) + "\n")
    except Exception as error:
        sys.exit("out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}")
