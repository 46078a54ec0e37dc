"""Which matrices of a model an adapter changes."""

from __future__ import annotations

import math
from collections import Counter
from fnmatch import fnmatchcase

import torch
from torch import nn

from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.lora_linear import base_parameter, linear_maps
from synthe_core.adapters.spec import ALL, LoraSpec
from synthe_core.errors import InputError, unknown
from synthe_core.model.classifier import Model
from synthe_core.model.parts import parts
from synthe_core.quantization.matrix import QuantizedMatrix


def new_adapter(model: Model, spec: LoraSpec) -> Adapter:
    """An adapter that changes nothing yet: A uniform in ±1/√in, drawn on the CPU, and B zero."""
    maps = {}
    for name, module in find_targets(model, spec.targets).items():
        rank = min(spec.rank, module.in_features, module.out_features)
        a = torch.empty(rank, module.in_features).uniform_(-1, 1) / math.sqrt(module.in_features)
        maps[name] = LowRank(a, torch.zeros(module.out_features, rank), spec.scaling)
    return Adapter(maps, spec.dropout)


def find_targets(model: Model, targets: list[str]) -> dict[str, nn.Linear]:
    """The linear maps that `targets` name (see `LoraSpec`), in the model's order; InputError for a target of none."""
    linear = linear_maps(model)
    times = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    modules = (module for _, module in model.named_modules(remove_duplicate=False))
    times.update(id(module) for module in modules if isinstance(module, QuantizedMatrix))
    shared = {name for name, module in linear.items() if times[id(base_parameter(module))] > 1}
    chosen: set[str] = set()
    for target in targets:
        matches = _matching(model, list(linear), target)
        if not matches:
            raise _no_such(model, list(linear), target)
        if target == ALL:
            matches = [name for name in matches if name not in shared]
        elif both := next((name for name in matches if name in shared), None):
            raise InputError(
                f"train.lora.targets: {both} shares its matrix with another part of the model",
                "an adapter of it would change both: leave it out",
            )
        chosen.update(matches)
    return {name: module for name, module in linear.items() if name in chosen}


def _matching(model: Model, names: list[str], target: str) -> list[str]:
    """Of `names`, those that `target` means."""
    if target == ALL:
        inside = {id(module) for module in model.blocks.modules()}
        return [name for name, module in linear_maps(model).items() if id(module) in inside]
    known = parts(model.spec)
    if target in known:
        return [name for name in names if name.startswith(known[target].prefixes)]
    part, _, rest = target.rpartition(".")
    of_part = tuple(f"{prefix}{rest}" for prefix in known[part].prefixes) if part in known else ()
    return [n for n in names if n in of_part or n == target or n.endswith(f".{target}") or fnmatchcase(n, target)]


def _no_such(model: Model, names: list[str], target: str) -> InputError:
    maps = {name.rpartition(".")[2] for name in names}
    known = [part for part in parts(model.spec) if _matching(model, names, part)]
    error = unknown("target", target, [ALL, *known, *sorted(name for name in maps if name.isidentifier())])
    return InputError(f"train.lora.targets: {error.message}", error.hint)
