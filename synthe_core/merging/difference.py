"""The verb `merge diff`: how two models differ, tensor by tensor, or how their differences from a base do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from synthe_core.errors import InputError
from synthe_core.events import Event, Progress, Result
from synthe_core.merging import stream
from synthe_core.merging.hashed_file import TensorInfo
from synthe_core.merging.inputs import fetch_inputs, open_input
from synthe_core.merging.inputs.adapter import Adapter
from synthe_core.merging.inputs.merged_view import MergedView
from synthe_core.merging.inputs.model import Model
from synthe_core.merging.plan import LISTED, read
from synthe_core.merging.stream import Job

SUMS = 7


@dataclass(frozen=True)
class Difference:
    """The difference of one tensor, or of all.

    distance: |a - b|. relative: distance over the larger norm of a and b, or of their differences from the base.
    cosine: between a and b, or those differences; None if one is zero. signs: the share of entries with equal signs
    among those where neither is zero; None without any. changed: how many entries differ.
    """

    name: str
    shape: tuple[int, ...]
    distance: float
    relative: float | None
    cosine: float | None
    signs: float | None
    changed: int


def diff(one: str, other: str, *, base: str | None = None, threads: int | None = None) -> Iterator[Event]:
    """Compares two models; with a `base`, their differences from it, which a merge of the two combines.

    The last event is a Result: "tensors" in the first model's order, "total" over all, "only" those that one lacks.
    """
    yield from fetch_inputs([one, other, base])
    a, b = _open(one, base), _open(other, base)
    base_model = open_input(base) if base is not None else None
    pairs = [name for name in a.tensors if name in b.tensors and a.tensors[name].shape == b.tensors[name].shape]
    if base_model is not None and (missing := [n for n in pairs if n not in base_model.tensors]):
        raise InputError(
            f"{base_model.named} has no tensor {', '.join(missing[:LISTED])}", "it is not a base of these models"
        )
    shared = [name for name in pairs if a.tensors[name].floats and b.tensors[name].floats]
    if not shared:
        raise InputError(f"{one} and {other} have no tensor in common", "they are of different architectures")
    for model in (a, b, *([base_model] if base_model is not None else [])):
        for file in model.files:
            file.hashed = False
    jobs = [_job(name, a, b, base_model) for name in shared]
    total, differences, sums = sum(job.bytes for job in jobs), [], torch.zeros(SUMS, dtype=torch.float64)
    done = 0
    for job, sums_of_job in stream.run(jobs, threads):
        differences.append(_figures(job.name, a.tensors[job.name].shape, sums_of_job))
        sums += sums_of_job
        done += job.bytes
        yield Progress("compare", done, total, "bytes")
    only = [f"{name} in {model.named}" for model, names in ((a, a.tensors), (b, b.tensors)) for name in names]
    only = [each for each in only if each.split(" in ")[0] not in pairs]
    total_difference = _figures("all", (), sums)
    yield Result({"total": asdict(total_difference), "tensors": [asdict(each) for each in differences], "only": only})


def _open(text: str, base: str | None) -> Model:
    model = open_input(text)
    if not isinstance(model, Adapter):
        return model
    if base is None and model.base is None:
        raise InputError(f"{text} does not name the model it is for", "name it with --base MODEL")
    return MergedView(open_input(base or model.base or ""), model)


def _job(name: str, a: Model, b: Model, base: Model | None) -> Job:
    def measure() -> torch.Tensor:
        x, y = (read(model, name, torch.float32) for model in (a, b))
        distance = (x - y).norm(dtype=torch.float64) if x.numel() else torch.zeros((), dtype=torch.float64)
        changed = (x != y).sum()
        if base is not None:
            base_tensor = read(base, name, torch.float32)
            x, y = x - base_tensor, y - base_tensor
        nonzero = (x != 0) & (y != 0)
        same_sign = ((x > 0) == (y > 0)) & nonzero
        flat = [each.reshape(-1).double() for each in (x, y)]
        sums = (
            distance**2,
            flat[0] @ flat[0],
            flat[1] @ flat[1],
            flat[0] @ flat[1],
            same_sign.sum(),
            nonzero.sum(),
            changed,
        )
        return torch.tensor([float(each) for each in sums], dtype=torch.float64)

    size = a.tensors[name].numel
    return Job(name, TensorInfo((SUMS,), torch.float64), measure, size * 40)


def _figures(name: str, shape: tuple[int, ...], sums: torch.Tensor) -> Difference:
    distance, a, b, product, same_sign, nonzero, changed = sums.tolist()
    return Difference(
        name,
        shape,
        math.sqrt(distance),
        math.sqrt(distance / max(a, b)) if max(a, b) else None,
        product / math.sqrt(a * b) if a and b else None,
        same_sign / nonzero if nonzero else None,
        int(changed),
    )
