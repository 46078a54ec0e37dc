"""Adapters merged as adapters: the result is an adapter too.

    as: adapter   the method merges the differences B A that the adapters make; the outcome is factored again, to a
                  rank. What the rank cannot hold is lost; nothing is where the rank is the sum of the adapters' ranks
                  and the method adds up.
    as: factors   the method merges all A and all B, as PEFT's combinations without `svd` do: no decomposition, and
                  equal ranks. The product of merged factors is not the merger of the products.

Merged into the base (`as: model`) the difference is kept whole, and the result is a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.merging.config import Form, MergeSpec
from synthe_core.merging.factors import factored, refactored
from synthe_core.merging.hashed_file import Facts
from synthe_core.merging.inputs.adapter import CONFIG, PREFIX, Adapter, Factors
from synthe_core.merging.inputs.huggingface import MERGE
from synthe_core.merging.inputs.model import write_json
from synthe_core.merging.method import Method
from synthe_core.merging.parameters import values
from synthe_core.merging.plan import generator
from synthe_core.merging.stream import Job
from synthe_core.storage.manifest import FileDigest

SUMS = ("linear", "task_arithmetic")
"""Methods that are sums of differences with coefficients alone: no product needs to be made."""
Make = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AdapterPlan:
    jobs: list[Job]
    config: dict[str, Any]
    notices: list[str] = field(default_factory=list)


def plan(spec: MergeSpec, method: Method, adapters: Mapping[str, Adapter], form: Form) -> AdapterPlan:
    """The jobs that make the result's factors; InputError for adapters that cannot be merged as adapters."""
    found = list(adapters.values())
    turning = method.needs_base and method.count.most == 1  # from the first adapter to the second
    method.check_count(len(found) - turning)
    notices = _check(found, form)
    shapes: dict[str, tuple[int, ...]] = {}
    for adapter in found:
        for name, shape in adapter.shapes.items():
            if shapes.setdefault(name, shape) != shape:
                raise InputError(
                    f"{name} is {list(shapes[name])} in one adapter and {list(shape)} in {adapter.named}",
                    "they are for different bases",
                )
    ranks = {name: [a.rank(name) for a in found if name in a.adapted] for name in shapes}
    rank = spec.rank or max(max(each) for each in ranks.values())
    jobs: list[Job] = []
    for name, shape in shapes.items():
        embedding = any(adapter.embeds(name) for adapter in found if name in adapter.adapted)
        turned = embedding or bool(found[0].config.get("fan_in_fan_out"))
        rows, columns = shape[::-1] if turned else shape
        sources = [adapter if name in adapter.adapted else None for adapter in found]
        given = {each.model: each.parameters for each in spec.models or []}
        own = [[given[key], spec.parameters] for key in list(adapters)[turning:]]
        chosen = values(method, [spec.parameters], own, name, 0.0)
        seed = (spec.seed, name)
        if form == "factors":
            if len({*ranks[name]}) > 1 or None in sources or spec.rank not in (None, ranks[name][0]):
                raise InputError(
                    f"{name} has ranks {', '.join(map(str, ranks[name]))} in the adapters that have it",
                    "factors are merged only where all adapters have them, of one rank: --as adapter",
                )
            make = _factorwise(name, method, sources, chosen, seed)  # type: ignore[arg-type]
            kept = ranks[name][0]
        else:
            kept = rank
            make = _differences(name, method, sources, (rows, columns), chosen, seed, rank, turning)
        both = Both(make)
        work = 4 * rows * columns * (len(found) + 4)
        down, up = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        path = PREFIX + name.removesuffix(".weight")
        jobs.append(Job(f"{path}.{down}", Facts((kept, columns), torch.float32), both.first, work))
        jobs.append(Job(f"{path}.{up}", Facts((rows, kept), torch.float32), both.second, 0))
    return AdapterPlan(jobs, _config(found, shapes, rank), notices)


class Both:
    """Two tensors of one piece of work, which two jobs take, in any order and once each."""

    def __init__(self, make: Make) -> None:
        self._make, self._lock = make, threading.Lock()
        self._left: dict[int, Tensor] = {}

    def first(self) -> Tensor:
        return self._take(0)

    def second(self) -> Tensor:
        return self._take(1)

    def _take(self, which: int) -> Tensor:
        with self._lock:
            if not self._left:
                self._left = dict(enumerate(self._make()))
            return self._left.pop(which)


def _differences(
    name: str,
    method: Method,
    adapters: Sequence[Adapter | None],
    shape: tuple[int, int],
    chosen: dict[str, Any],
    seed: tuple[int, str],
    rank: int,
    turning: bool,
) -> Make:
    """The method on B A of every adapter (zeros where one leaves the tensor alone), factored again."""

    def sums() -> tuple[Tensor, Tensor]:
        """The method's coefficients are what it makes of unit vectors."""
        units = list(torch.eye(len(adapters), dtype=torch.float64))
        weights = method(units, torch.zeros_like(units[0]), chosen).tolist()
        parts = [(_factors(a, name), w) for a, w in zip(adapters, weights, strict=True) if a is not None]
        down = torch.cat([each.down for each, _ in parts])
        up = torch.cat([each.up * (each.scale * weight) for each, weight in parts], dim=1)
        return refactored(down, up, rank)

    def products() -> tuple[Tensor, Tensor]:
        found = [torch.zeros(shape) if adapter is None else _product(adapter, name) for adapter in adapters]
        base = found.pop(0) if turning else torch.zeros(shape)
        return factored(method(found, base, chosen, **_random(method, *seed)), rank)

    return sums if method.name in SUMS else products


def _factorwise(
    name: str, method: Method, adapters: Sequence[Adapter], chosen: dict[str, Any], seed: tuple[int, str]
) -> Make:
    """The method on all A, and on all B, each times the root of its adapter's weight and scale."""
    weights = chosen.get("weight", (1.0,) * len(adapters))
    if min(weights) < 0:
        raise InputError(f"weight {min(weights):g} is below 0", "factors take roots of weights: --as adapter")
    plain = chosen | ({"weight": (1.0,) * len(adapters)} if "weight" in chosen else {})
    random = _random(method, *seed)

    def make() -> tuple[Tensor, Tensor]:
        found = [_factors(adapter, name) for adapter in adapters]
        roots = [(weight * each.scale) ** 0.5 for weight, each in zip(weights, found, strict=True)]
        downs, ups = (
            [getattr(f, side) * root for f, root in zip(found, roots, strict=True)] for side in ("down", "up")
        )
        both = [method(each, torch.zeros_like(each[0]), plain, **random) for each in (downs, ups)]
        return both[0], both[1]

    return make


def _random(method: Method, seed: int, name: str) -> dict[str, torch.Generator]:
    return {"generator": generator(seed, name)} if method.random else {}


def _factors(adapter: Adapter, name: str) -> Factors:
    found = adapter.factors(name)
    for tensor in (found.down, found.up):
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} of {adapter.named} holds NaN or infinity", "that training went wrong: use another"
            )
    return found


def _product(adapter: Adapter, name: str) -> Tensor:
    found = _factors(adapter, name)
    return (found.up @ found.down).mul_(found.scale)


def _check(found: Sequence[Adapter], form: Form) -> list[str]:
    for adapter in found:
        if adapter.whole:
            name = next(iter(adapter.whole))
            raise InputError(f"{adapter.named} replaces {name} as a whole", "merge it into the base: --as model")
        if adapter.config.get("use_dora"):
            raise InputError(f"{adapter.named} scales rows (DoRA)", "merge it into the base: --as model")
        if bool(adapter.config.get("fan_in_fan_out")) != bool(found[0].config.get("fan_in_fan_out")):
            raise InputError(f"{adapter.named} differs from {found[0].named} in fan_in_fan_out", "merge: --as model")
    bases = sorted({adapter.base or "?" for adapter in found})
    return [f"the adapters name different bases: {', '.join(bases)}; the first is kept"] if len(bases) > 1 else []


def _config(found: Sequence[Adapter], shapes: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """adapter_config.json of the result: alpha equals the rank, so that the scale is 1."""
    keys = ("peft_type", "task_type", "fan_in_fan_out", "bias", "inference_mode")
    kept = {key: found[0].config[key] for key in keys if key in found[0].config}
    modules = sorted(name.removesuffix(".weight") for name in shapes)
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": found[0].base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": modules,
        **kept,
    }


def describe(
    folder: Path,
    config: Mapping[str, Any],
    parents: Sequence[Mapping[str, Any]],
    merge: Mapping[str, Any],
    known: Mapping[str, FileDigest],
) -> None:
    """Writes what belongs beside an adapter's factors."""
    write_json(folder / CONFIG, config)
    files = {name: facts.model_dump() for name, facts in known.items()}
    write_json(folder / MERGE, {"parents": parents, **merge, "files": files})
