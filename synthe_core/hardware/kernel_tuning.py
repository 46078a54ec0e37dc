"""Which kernels are fastest for a recipe on this machine: timed on request, stored, preferred from then on.

A tuned kernel is softer than the recipe's `runtime.kernels`: one that refuses a call is passed over, and single steps
of decoding keep the ranking. Choices are stored by the machine's fingerprint and the model. Another kernel is another
order of additions: a run that resumes keeps the choices that it began with.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.events import Event, Measurement, Notice
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.probe import Hardware, cache_dir, fingerprint
from synthe_core.ops.dispatch import OPS, Call, Op, RecordedCall, record_ops
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.atomic import write_file

ROUNDS = 5
MIN_SPEEDUP = 1.05  # another kernel must be this much faster than the ranked one: less is noise
TIME_LIMIT = 20.0  # seconds for one operator


class Timing(NamedTuple):
    """Seconds of a kernel, forward and backward, over the unique calls of a pass: the median of the rounds."""

    kernel: str
    seconds: float


def tuned_kernels_path(recipe: Recipe, device: str, hardware: Hardware) -> Path:
    """The file of the tuned kernels for this model on this machine, with the recipe's number of threads."""
    facts = {"model": recipe.model.model_dump(mode="json"), "sequence": recipe.data.sequence, "device": device}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir() / "kernels" / f"{fingerprint(hardware, recipe.runtime.threads)}-{digest}.json"


def tuned_kernels(recipe: Recipe, device: str, hardware: Hardware) -> dict[str, str]:
    """Operator -> kernel as timed before, without kernels that no longer exist; empty where nothing was timed."""
    try:
        stored = json.loads(tuned_kernels_path(recipe, device, hardware).read_text(encoding="utf-8"))["kernels"]
        return {str(op): str(kernel) for op, kernel in stored.items() if kernel_exists(op, kernel)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def kernel_exists(op: str, kernel: str) -> bool:
    return op in OPS and any(each.name == kernel for each in OPS[op].kernels)


def tune_kernels(
    model: Any, batch: Any, recipe: Recipe, context: ExecutionContext, hardware: Hardware
) -> Iterator[Event]:
    """Times the kernels that can serve each operator of a training pass over `batch`, and stores those to prefer."""
    with context.activate(), record_ops() as recorder:
        model.loss(batch.inputs.to(context.device), batch.targets.to(context.device))
    selected: dict[str, str] = {}
    for op, calls in unique_calls(recorder.calls).items():
        candidates, ranked = candidate_kernels(op, calls, hardware)
        if len(candidates) < 2:
            continue
        timings = time_kernels(op, calls, candidates)
        best = select_kernel(timings, ranked)
        seconds = {timing.kernel: timing.seconds for timing in timings}
        yield Measurement(op.name, {"chosen": best, **{f"{kernel} ms": 1e3 * s for kernel, s in seconds.items()}})
        if best != ranked:
            selected[op.name] = best
            speedup = seconds[ranked] / seconds[best]
            yield Notice(f"{op.name}: {best} from now on, {speedup:.2f} times as fast here as {ranked}")
    path = tuned_kernels_path(recipe, context.device.type, hardware)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"kernels": selected}) + "\n")
    yield Notice(f"stored in {path}" if selected else f"the ranked kernels are the fastest here ({path})")


def unique_calls(recorded: Iterable[RecordedCall]) -> dict[Op, list[Call]]:
    """The calls of each operator, one of every combination of shapes."""
    calls: dict[Op, dict[Any, Call]] = {}
    for op, call, _ in recorded:
        shapes = tuple(tuple(v.shape) if isinstance(v, Tensor) else repr(v) for v in call.arguments.values())
        calls.setdefault(op, {}).setdefault(shapes, call)
    return {op: list(by_shape.values()) for op, by_shape in calls.items()}


def candidate_kernels(op: Op, calls: list[Call], hardware: Hardware) -> tuple[list[str], str]:
    """The kernels that refuse none of the calls, and the one that the ranking takes."""
    with torch.enable_grad():
        explained = [op.explain(call, hardware) for call in calls]
    ranked = next(choice.kernel for choice in explained[0] if choice.chosen)
    candidates = [
        kernel.name
        for place, kernel in enumerate(op.kernels)
        if all(choices[place].reason is None for choices in explained)
    ]
    return candidates if ranked in candidates else [], ranked


def time_kernels(op: Op, calls: list[Call], candidates: list[str]) -> list[Timing]:
    """The candidates in alternation, forward and backward, after one round that is not counted."""
    seconds: dict[str, list[float]] = {kernel: [] for kernel in candidates}
    start = time.perf_counter()
    for round_ in range(ROUNDS + 1):
        for kernel in candidates:
            elapsed = sum(_seconds(op, call, kernel) for call in calls)
            if round_:
                seconds[kernel].append(elapsed)
        if round_ and time.perf_counter() - start > TIME_LIMIT:
            break
    return [Timing(kernel, statistics.median(rounds)) for kernel, rounds in seconds.items()]


def select_kernel(timings: list[Timing], ranked: str) -> str:
    """The fastest kernel if it is faster than the ranked one by MIN_SPEEDUP, else the ranked one."""
    best = min(timings, key=lambda timing: timing.seconds)
    baseline = next(timing.seconds for timing in timings if timing.kernel == ranked)
    return best.kernel if baseline > MIN_SPEEDUP * best.seconds else ranked


def _seconds(op: Op, call: Call, kernel: str) -> float:
    """Seconds of one call through `kernel`, with the backward pass where it has a gradient."""
    arguments = {name: _copied(value) for name, value in call.arguments.items()}
    _synchronize(call.device)
    start = time.perf_counter()
    with torch.set_grad_enabled(call.grad):
        out = op.named(kernel)(**arguments)
        leaves = [x for x in _tensors(out) if x.requires_grad]
        if leaves:
            torch.autograd.backward(leaves, [torch.ones_like(x) for x in leaves])
    _synchronize(call.device)
    return time.perf_counter() - start


def _copied(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [x for each in out for x in _tensors(each)] if isinstance(out, tuple) else []


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
