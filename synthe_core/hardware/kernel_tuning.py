"""Which kernels are fastest for a recipe on this machine: timed on request, remembered, preferred from then on.

A preference is softer than the recipe's `runtime.kernels`: a kernel that refuses a call is passed over, and single
steps of decoding keep the ranking. What was chosen is kept by the machine's fingerprint and the model. Another kernel
is another order of additions: a run that goes on keeps the preferences that it began with.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.events import Event, Measurement, Notice
from synthe_core.hardware.probe import Hardware, cache_dir, fingerprint, probe
from synthe_core.ops.dispatch import OPS, Call, Op, hear_calls, prefer_kernels, use_kernels
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.atomic import write_file

TURNS = 5
WORTH = 1.05  # another kernel must be this much faster than the ranked one: less is noise
PATIENCE = 20.0  # seconds for one operator


class Timing(NamedTuple):
    """Seconds of a kernel, forward and back, over the distinct calls of a pass: the median of the turns."""

    kernel: str
    seconds: float


def kept(recipe: Recipe, device: str, hardware: Hardware) -> Path:
    """Where the preferences for this model on this machine are kept."""
    facts = {"model": recipe.model.model_dump(mode="json"), "sequence": recipe.data.sequence, "device": device}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir() / "kernels" / f"{fingerprint(hardware)}-{digest}.json"


def preferred(recipe: Recipe, device: str, hardware: Hardware) -> dict[str, str]:
    """Operator -> kernel, as timed before; nothing where it was not, or where a kernel of it is gone."""
    try:
        found = json.loads(kept(recipe, device, hardware).read_text(encoding="utf-8"))["kernels"]
        return {str(op): str(kernel) for op, kernel in found.items() if known(op, kernel)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def known(op: str, kernel: str) -> bool:
    return op in OPS and any(each.name == kernel for each in OPS[op].kernels)


@contextmanager
def in_use(recipe: Recipe, device: str, hardware: Hardware | None = None) -> Iterator[None]:
    """Within the block, passes run the recipe's kernels, and else those preferred for it here."""
    with ExitStack() as stack:
        stack.enter_context(use_kernels(**recipe.runtime.kernels))
        stack.enter_context(prefer_kernels(**preferred(recipe, device, hardware or probe())))
        yield


def tune_kernels(model: Any, batch: Any, recipe: Recipe, settings: Any, hardware: Hardware) -> Iterator[Event]:
    """Times the kernels that could serve each operator of a training pass over `batch`, and keeps what is worth it."""
    device = settings.device.type
    with settings.in_force(), hear_calls() as heard:
        model.loss(batch.inputs.to(settings.device), batch.targets.to(settings.device))
    choice: dict[str, str] = {}
    for op, calls in distinct(heard).items():
        candidates, default = rivals(op, calls, hardware)
        if len(candidates) < 2:
            continue
        times = race(op, calls, candidates)
        best = fastest(times, default)
        ranked = next(each.seconds for each in times if each.kernel == default)
        told = {each.kernel: 1e3 * each.seconds for each in times}
        yield Measurement(op.name, {"chosen": best, **{f"{kernel} ms": ms for kernel, ms in told.items()}})
        if best != default:
            choice[op.name] = best
            quicker = ranked / next(each.seconds for each in times if each.kernel == best)
            yield Notice(f"{op.name}: {best} from now on, {quicker:.2f} times as fast here as {default}")
    path = kept(recipe, device, hardware)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"kernels": choice}) + "\n")
    yield Notice(f"kept in {path}" if choice else f"the ranked kernels are the fastest here ({path})")


def distinct(heard: list[tuple[Op, Call]]) -> dict[Op, list[Call]]:
    """The calls of each operator, one of every shape."""
    found: dict[Op, dict[Any, Call]] = {}
    for op, call in heard:
        shapes = tuple(tuple(v.shape) if isinstance(v, Tensor) else repr(v) for v in call.arguments.values())
        found.setdefault(op, {}).setdefault(shapes, call)
    return {op: list(calls.values()) for op, calls in found.items()}


def rivals(op: Op, calls: list[Call], hardware: Hardware) -> tuple[list[str], str]:
    """The kernels that refuse none of the calls, and the one that the ranking takes."""
    with torch.enable_grad():
        explained = [op.explain(call, hardware) for call in calls]
    default = next(choice.kernel for choice in explained[0] if choice.chosen)
    willing = [
        kernel.name
        for place, kernel in enumerate(op.kernels)
        if all(choices[place].reason is None for choices in explained)
    ]
    return willing if default in willing else [], default


def race(op: Op, calls: list[Call], candidates: list[str]) -> list[Timing]:
    """The candidates in turns, forward and back, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {kernel: [] for kernel in candidates}
    begun = time.perf_counter()
    for turn in range(TURNS + 1):
        for kernel in candidates:
            taken = sum(_seconds(op, call, kernel) for call in calls)
            if turn:
                seconds[kernel].append(taken)
        if turn and time.perf_counter() - begun > PATIENCE:
            break
    return [Timing(kernel, statistics.median(taken)) for kernel, taken in seconds.items()]


def fastest(times: list[Timing], default: str) -> str:
    """The fastest, if it is worth leaving the ranking for."""
    best = min(times, key=lambda each: each.seconds)
    ranked = next(each.seconds for each in times if each.kernel == default)
    return best.kernel if ranked > WORTH * best.seconds else default


def _seconds(op: Op, call: Call, kernel: str) -> float:
    """Of one call through `kernel`, and back where it has a gradient."""
    given = {name: _own(value) for name, value in call.arguments.items()}
    _wait(call.device)
    start = time.perf_counter()
    with torch.set_grad_enabled(call.grad):
        out = op.named(kernel)(**given)
        leaves = [x for x in _tensors(out) if x.requires_grad]
        if leaves:
            torch.autograd.backward(leaves, [torch.ones_like(x) for x in leaves])
    _wait(call.device)
    return time.perf_counter() - start


def _own(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [x for each in out for x in _tensors(each)] if isinstance(out, tuple) else []


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
