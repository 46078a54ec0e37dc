"""The verb `merge diff`: how two models differ, tensor by tensor, or how their differences from a base do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from synthe_core.errors import InputError
from synthe_core.events import Event, Progress, Result
from synthe_core.merging import stream
from synthe_core.merging.hashed_file import Facts
from synthe_core.merging.inputs import open_input
from synthe_core.merging.inputs.adapter import Adapter, MergedView
from synthe_core.merging.inputs.model import Model
from synthe_core.merging.plan import LISTED, read
from synthe_core.merging.stream import Job

SUMS = 7


@dataclass(frozen=True)
class Difference:
    """Of one tensor, or of all.

    distance: |a - b|. relative: over the longer of a and b, or of their differences from the base. cosine: between a
    and b, or those differences; None where one is zero. signs: the share of entries with the same sign, of those where
    neither is zero; None where there are none. changed: how many entries differ.
    """

    name: str
    shape: tuple[int, ...]
    distance: float
    relative: float | None
    cosine: float | None
    signs: float | None
    changed: int


def diff(one: str, other: str, *, base: str | None = None, threads: int | None = None) -> Iterator[Event]:
    """Compares two models; with a `base`, what each has learnt beyond it: what a merge of the two will meet.

    The last event is a Result: "tensors" in the first model's order, "total" over all, "only" what one of them lacks.
    """
    a, b = _opened(one, base), _opened(other, base)
    ground = open_input(base) if base is not None else None
    pairs = [name for name in a.tensors if name in b.tensors and a.tensors[name].shape == b.tensors[name].shape]
    if ground is not None and (lacking := [n for n in pairs if n not in ground.tensors]):
        raise InputError(f"{ground.named} has no tensor {', '.join(lacking[:LISTED])}", "it is no base of these models")
    shared = [name for name in pairs if a.tensors[name].floats and b.tensors[name].floats]
    if not shared:
        raise InputError(f"{one} and {other} have no tensor in common", "they are of different architectures")
    for model in (a, b, *([ground] if ground is not None else [])):
        for file in model.files:
            file.hashed = False
    jobs = [_job(name, a, b, ground) for name in shared]
    total, found, sums = sum(job.bytes for job in jobs), [], torch.zeros(SUMS, dtype=torch.float64)
    done = 0
    for job, measured in stream.run(jobs, threads):
        found.append(_figures(job.name, a.tensors[job.name].shape, measured))
        sums += measured
        done += job.bytes
        yield Progress("compare", done, total, "bytes")
    only = [f"{name} in {model.named}" for model, names in ((a, a.tensors), (b, b.tensors)) for name in names]
    only = [each for each in only if each.split(" in ")[0] not in pairs]
    whole = _figures("all", (), sums)
    yield Result({"total": asdict(whole), "tensors": [asdict(each) for each in found], "only": only})


def _opened(text: str, base: str | None) -> Model:
    found = open_input(text)
    if not isinstance(found, Adapter):
        return found
    if base is None and found.base is None:
        raise InputError(f"{text} does not name the model it is for", "name it with --base MODEL")
    return MergedView(open_input(base or found.base or ""), found)


def _job(name: str, a: Model, b: Model, base: Model | None) -> Job:
    def make() -> torch.Tensor:
        x, y = (read(model, name, torch.float32) for model in (a, b))
        apart = (x - y).norm(dtype=torch.float64) if x.numel() else torch.zeros((), dtype=torch.float64)
        changed = (x != y).sum()
        if base is not None:
            ground = read(base, name, torch.float32)
            x, y = x - ground, y - ground
        both = (x != 0) & (y != 0)
        same = ((x > 0) == (y > 0)) & both
        flat = [each.reshape(-1).double() for each in (x, y)]
        sums = (apart**2, flat[0] @ flat[0], flat[1] @ flat[1], flat[0] @ flat[1], same.sum(), both.sum(), changed)
        return torch.tensor([float(each) for each in sums], dtype=torch.float64)

    size = a.tensors[name].numel
    return Job(name, Facts((SUMS,), torch.float64), make, size * 40)


def _figures(name: str, shape: tuple[int, ...], sums: torch.Tensor) -> Difference:
    apart, a, b, product, same, both, changed = sums.tolist()
    return Difference(
        name,
        shape,
        math.sqrt(apart),
        math.sqrt(apart / max(a, b)) if max(a, b) else None,
        product / math.sqrt(a * b) if a and b else None,
        same / both if both else None,
        int(changed),
    )
