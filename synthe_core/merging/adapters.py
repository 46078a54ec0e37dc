"""Adapters merged as adapters: the result is an adapter too.

    as: adapter   the method merges the adapters' differences B A; the result is factored again to a rank, which
                  truncates it, unless the rank is the sum of the adapters' ranks and the method is a sum.
    as: factors   the method merges all A and all B, as PEFT's combinations without `svd` do: no decomposition, equal
                  ranks. The product of merged factors is not the merge of the products.

Merged into the base (`as: model`) the difference is not truncated, and the result is a model.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.adapters.peft import PREFIX
from synthe_core.adapters.peft_config import CONFIG
from synthe_core.errors import InputError
from synthe_core.merging.base_digest import common_metadata
from synthe_core.merging.config import Form, MergeSpec
from synthe_core.merging.factors import factored, refactored
from synthe_core.merging.hashed_file import TensorInfo
from synthe_core.merging.inputs.adapter import Adapter, Factors
from synthe_core.merging.inputs.huggingface import MERGE
from synthe_core.merging.inputs.model import write_json
from synthe_core.merging.method import Method
from synthe_core.merging.parameters import values
from synthe_core.merging.plan import generator
from synthe_core.merging.stream import Job
from synthe_core.storage.manifest import FileDigest

SUMS = ("linear", "task_arithmetic")
"""Methods that are linear combinations of differences: no product has to be formed."""
ComputePair = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AdapterPlan:
    """metadata: of the file with the factors: which base they are for."""

    jobs: list[Job]
    config: dict[str, Any]
    metadata: dict[str, str]
    notices: list[str] = field(default_factory=list)


def plan(spec: MergeSpec, method: Method, adapters: Mapping[str, Adapter], form: Form) -> AdapterPlan:
    """The jobs that compute the result's factors. InputError for adapters that cannot be merged as adapters."""
    ordered = list(adapters.values())
    first_is_base = method.needs_base and method.count.most == 1  # from the first adapter to the second
    method.check_count(len(ordered) - first_is_base)
    notices = _check(ordered, form)
    shapes: dict[str, tuple[int, ...]] = {}
    for adapter in ordered:
        for name, shape in adapter.shapes.items():
            if shapes.setdefault(name, shape) != shape:
                raise InputError(
                    f"{name} is {list(shapes[name])} in one adapter and {list(shape)} in {adapter.named}",
                    "they are for different bases",
                )
    ranks = {name: [a.rank(name) for a in ordered if name in a.adapted] for name in shapes}
    rank = spec.rank or max(max(each) for each in ranks.values())
    jobs: list[Job] = []
    for name, shape in shapes.items():
        embedding = any(adapter.embeds(name) for adapter in ordered if name in adapter.adapted)
        transposed = embedding or ordered[0].transposed
        rows, columns = shape[::-1] if transposed else shape
        sources = [adapter if name in adapter.adapted else None for adapter in ordered]
        parameters = {each.model: each.parameters for each in spec.models or []}
        own = [[parameters[key], spec.parameters] for key in list(adapters)[first_is_base:]]
        chosen = values(method, [spec.parameters], own, name, 0.0)
        seed = (spec.seed, name)
        if form == "factors":
            if len({*ranks[name]}) > 1 or None in sources or spec.rank not in (None, ranks[name][0]):
                raise InputError(
                    f"{name} has ranks {', '.join(map(str, ranks[name]))} in the adapters that have it",
                    "factors are merged only where all adapters have them, of one rank: --as adapter",
                )
            compute = _factorwise(name, method, sources, chosen, seed)  # type: ignore[arg-type]
            own_rank = ranks[name][0]
        else:
            own_rank = rank
            compute = _differences(name, method, sources, (rows, columns), chosen, seed, rank, first_is_base)
        pair = SharedPair(compute)
        work = 4 * rows * columns * (len(ordered) + 4)
        down, up = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        path = PREFIX + name.removesuffix(".weight")
        jobs.append(Job(f"{path}.{down}", TensorInfo((own_rank, columns), torch.float32), pair.first, work))
        jobs.append(Job(f"{path}.{up}", TensorInfo((rows, own_rank), torch.float32), pair.second, 0))
    own_ranks = {name: ranks[name][0] if form == "factors" else rank for name in shapes}
    return AdapterPlan(jobs, _config(ordered, own_ranks, rank), common_metadata(ordered), notices)


class SharedPair:
    """Two tensors that one computation gives and two jobs take, each once and in any order."""

    def __init__(self, compute: ComputePair) -> None:
        self._compute, self._lock = compute, threading.Lock()
        self._pending: dict[int, Tensor] = {}

    def first(self) -> Tensor:
        return self._take(0)

    def second(self) -> Tensor:
        return self._take(1)

    def _take(self, which: int) -> Tensor:
        with self._lock:
            if not self._pending:
                self._pending = dict(enumerate(self._compute()))
            return self._pending.pop(which)


def _differences(
    name: str,
    method: Method,
    adapters: Sequence[Adapter | None],
    shape: tuple[int, int],
    chosen: dict[str, Any],
    seed: tuple[int, str],
    rank: int,
    first_is_base: bool,
) -> ComputePair:
    """The method on B A of every adapter (zeros if it does not adapt the tensor), factored again."""

    def sums() -> tuple[Tensor, Tensor]:
        """A linear method's coefficients are its results on unit vectors."""
        units = list(torch.eye(len(adapters), dtype=torch.float64))
        weights = method(units, torch.zeros_like(units[0]), chosen).tolist()
        parts = [(_factors(a, name), w) for a, w in zip(adapters, weights, strict=True) if a is not None]
        down = torch.cat([each.down for each, _ in parts])
        up = torch.cat([each.up * (each.scale * weight) for each, weight in parts], dim=1)
        return refactored(down, up, rank)

    def products() -> tuple[Tensor, Tensor]:
        differences = [torch.zeros(shape) if adapter is None else _product(adapter, name) for adapter in adapters]
        base = differences.pop(0) if first_is_base else torch.zeros(shape)
        return factored(method(differences, base, chosen, **_random(method, *seed)), rank)

    return sums if method.name in SUMS else products


def _factorwise(
    name: str, method: Method, adapters: Sequence[Adapter], chosen: dict[str, Any], seed: tuple[int, str]
) -> ComputePair:
    """The method on all A and on all B, each times the square root of its adapter's weight and scale."""
    weights = chosen.get("weight", (1.0,) * len(adapters))
    if min(weights) < 0:
        raise InputError(f"weight {min(weights):g} is below 0", "factors take roots of weights: --as adapter")
    plain = chosen | ({"weight": (1.0,) * len(adapters)} if "weight" in chosen else {})
    random = _random(method, *seed)

    def compute() -> tuple[Tensor, Tensor]:
        factors = [_factors(adapter, name) for adapter in adapters]
        roots = [(weight * each.scale) ** 0.5 for weight, each in zip(weights, factors, strict=True)]
        downs, ups = (
            [getattr(each, side) * root for each, root in zip(factors, roots, strict=True)] for side in ("down", "up")
        )
        merged = [method(each, torch.zeros_like(each[0]), plain, **random) for each in (downs, ups)]
        return merged[0], merged[1]

    return compute


def _random(method: Method, seed: int, name: str) -> dict[str, torch.Generator]:
    return {"generator": generator(seed, name)} if method.random else {}


def _factors(adapter: Adapter, name: str) -> Factors:
    factors = adapter.factors(name)
    for tensor in (factors.down, factors.up):
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} of {adapter.named} contains NaN or infinity", "its training diverged: use another"
            )
    return factors


def _product(adapter: Adapter, name: str) -> Tensor:
    factors = _factors(adapter, name)
    return (factors.up @ factors.down).mul_(factors.scale)


def _check(adapters: Sequence[Adapter], form: Form) -> list[str]:
    for adapter in adapters:
        if adapter.beyond_factors is not None:
            raise InputError(f"{adapter.named} {adapter.beyond_factors}", "merge it into the base: --as model")
        if adapter.transposed != adapters[0].transposed:
            raise InputError(f"{adapter.named} differs from {adapters[0].named} in fan_in_fan_out", "merge: --as model")
    bases = sorted({adapter.base or "?" for adapter in adapters})
    return [f"the adapters name different bases: {', '.join(bases)}; the first is used"] if len(bases) > 1 else []


def _config(adapters: Sequence[Adapter], ranks: Mapping[str, int], rank: int) -> dict[str, Any]:
    """adapter_config.json of the result; ranks: of each tensor. alpha equals the rank, so that the scale is 1."""
    keys = ("peft_type", "task_type", "fan_in_fan_out", "inference_mode", "ensure_weight_tying")
    given = adapters[0].config.values
    inherited = {key: given[key] for key in keys if key in given}
    modules = sorted(name.removesuffix(".weight") for name in ranks)
    others = {re.escape(name.removesuffix(".weight")): own for name, own in ranks.items() if own != rank}
    if others:
        inherited |= {"rank_pattern": others, "alpha_pattern": others}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": adapters[0].base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
        **inherited,
    }


def write_adapter_files(
    folder: Path,
    config: Mapping[str, Any],
    parents: Sequence[Mapping[str, Any]],
    merge: Mapping[str, Any],
    digests: Mapping[str, FileDigest],
) -> None:
    """Writes the files beside an adapter's factors."""
    write_json(folder / CONFIG, config)
    files = {name: digest.model_dump() for name, digest in digests.items()}
    write_json(folder / MERGE, {"parents": parents, **merge, "files": files})
