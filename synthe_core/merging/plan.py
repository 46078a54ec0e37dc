"""What a merge will do, checked whole before any of it is done: one job for each tensor of the result."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.merging.config import MergeSpec, SliceSpec
from synthe_core.merging.hashed_file import Facts
from synthe_core.merging.inputs.model import Model
from synthe_core.merging.method import Method
from synthe_core.merging.parameters import values
from synthe_core.merging.stream import Job
from synthe_core.recipe.differences import differences
from synthe_core.storage.tensor_file import NAMES

LAYER = re.compile(r"^(?P<before>(?:.*?\.)?)(?P<layer>\d+)\.(?P<after>.+)$")
FIRST = re.compile(r"embed|wte|wpe", re.IGNORECASE)
LISTED = 3  # names in one message
Places = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Piece:
    """One tensor of the result: `sources` are (model, its tensor's name), `own` where each finds its parameters."""

    name: str
    sources: list[tuple[Model, str]]
    base: tuple[Model, str] | None
    shared: Places
    own: Sequence[Places]
    at: float


@dataclass(frozen=True)
class Plan:
    """jobs in the order in which they read best; layers: the base's layers that the result has, where it was sliced."""

    jobs: list[Job]
    layers: list[int] | None = None
    notices: list[str] = field(default_factory=list)


class Tensors(Sequence[Tensor]):
    """Tensors of several models, read when they are asked for, as numbers to reckon with."""

    def __init__(self, sources: Sequence[tuple[Model, str]], dtype: torch.dtype) -> None:
        self._sources, self._dtype = sources, dtype

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: Any) -> Any:
        model, name = self._sources[index]
        return read(model, name, self._dtype)

    def __iter__(self) -> Iterator[Tensor]:
        return (read(model, name, self._dtype) for model, name in self._sources)


def read(model: Model, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor in `dtype`; InputError where it holds NaN or infinity."""
    tensor = model.read(name).to(dtype)
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        what = "NaN" if tensor.isnan().any() else "infinity"
        raise InputError(f"{name} of {model.named} holds {what}", "that training went wrong: use an earlier checkpoint")
    return tensor


def plan(spec: MergeSpec, method: Method, models: Mapping[str, Model], base: Model | None) -> Plan:
    """The jobs of a merge of `models` (by the names that `spec` has for them); InputError for what cannot be merged."""
    reference = base if base is not None else models[spec.inputs[0].model]
    notices = compare(reference, list(models.values()), whole=spec.slices is None)
    if spec.slices is not None:
        pieces, layers = _sliced(spec, spec.slices, method, models, base)
    else:
        pieces, layers = _whole(spec, method, models, base, reference), None
    dtype = spec.out_dtype or spec.dtype
    return Plan([_job(piece, method, dtype, spec.seed) for piece in pieces], layers, notices)


def merged(spec: MergeSpec, method: Method, base: str | None) -> list[str]:
    """Of the models named in `spec`, those that are merged: the base is not one of them where the method takes one."""
    if not method.takes_base or base is None:
        return [each.model for each in spec.inputs]
    return [each.model for each in spec.inputs if not _same(each.model, base)]


def _same(one: str, other: str) -> bool:
    """Whether two names mean one folder."""
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def _whole(
    spec: MergeSpec, method: Method, models: Mapping[str, Model], base: Model | None, reference: Model
) -> list[Piece]:
    names = merged(spec, method, spec.base_model)
    method.check_count(len(names))
    given = {each.model: each.parameters for each in spec.models or []}
    own = [[given[name], spec.parameters] for name in names]
    depth = 1 + max((layer for name in reference.tensors if (layer := layer_of(name)) is not None), default=0)
    return [
        Piece(
            tensor,
            [(models[name], tensor) for name in names],
            (base, tensor) if base is not None and method.takes_base else None,
            [spec.parameters],
            own,
            _at(layer_of(tensor), depth),
        )
        for tensor in reference.tensors
    ]


def _sliced(
    spec: MergeSpec, slices: Sequence[SliceSpec], method: Method, models: Mapping[str, Model], base: Model | None
) -> tuple[list[Piece], list[int]]:
    pieces: list[Piece] = []
    layers: list[int] = []
    for piece in slices:
        for offset in range(piece.sources[0].layer_range[1] - piece.sources[0].layer_range[0]):
            origin = {each.model: each.layer_range[0] + offset for each in piece.sources}
            first = next(iter(origin))
            found = [name for name in models[first].tensors if layer_of(name) == origin[first]]
            if not found:
                raise InputError(
                    f"{first} has no layer {origin[first]}",
                    f"layer_range {list(piece.sources[0].layer_range)} is beyond it",
                )
            length = piece.sources[0].layer_range[1] - piece.sources[0].layer_range[0]
            at = _at(offset, length)
            pieces += [_part(name, origin, len(layers), piece, spec, method, models, base, at) for name in found]
            layers.append(origin[spec.base_model] if spec.base_model in origin else origin[first])
    head, tail = slices[0], slices[-1]
    for name in models[head.sources[0].model].tensors:
        if layer_of(name) is None:
            edge = head if FIRST.search(name) else tail
            every = dict.fromkeys((each.model for each in edge.sources), -1)
            pieces.append(_part(name, every, 0, edge, spec, method, models, base, 0.0))
    return pieces, layers


def _part(
    name: str,
    origin: Mapping[str, int],
    number: int,
    piece: SliceSpec,
    spec: MergeSpec,
    method: Method,
    models: Mapping[str, Model],
    base: Model | None,
    at: float,
) -> Piece:
    """One tensor of a slice: `name` as the first source has it, taken from layer `origin[model]` of each."""
    names = [model for model in origin if not (method.takes_base and model == spec.base_model)]
    method.check_count(len(names))
    given = {each.model: each.parameters for each in piece.sources}
    under = [(models[model], _in_layer(name, origin[model])) for model in names]
    wanted = next(iter(origin.values()))
    below = (base, _in_layer(name, origin.get(spec.base_model or "", wanted))) if base and method.takes_base else None
    for model, tensor in [*under, *([below] if below else [])]:
        if tensor not in model.tensors:
            raise InputError(f"{model.named} has no tensor {tensor}", "the models of a slice must have the same layers")
    shared = [piece.parameters, spec.parameters]
    return Piece(
        _in_layer(name, number),
        under,
        below,
        shared,
        [[given[m], piece.parameters, spec.parameters] for m in names],
        at,
    )


def _job(piece: Piece, method: Method, dtype: str | None, seed: int) -> Job:
    chosen = values(method, piece.shared, piece.own, piece.name, piece.at)
    sources = [*([piece.base] if piece.base else []), *piece.sources]
    facts = [model.tensors[name] for model, name in sources]
    if len({each.shape for each in facts}) > 1:
        shapes = ", ".join(f"{list(each.shape)} in {m.named}" for each, (m, _) in zip(facts, sources, strict=True))
        raise InputError(f"{piece.name} is {shapes}", "tensors of different shapes cannot be merged")
    kinds = {each.floats for each in facts}
    if len(kinds) > 1:
        types = ", ".join(f"{NAMES[each.dtype]} in {m.named}" for each, (m, _) in zip(facts, sources, strict=True))
        raise InputError(f"{piece.name} is {types}", "whole numbers and fractions cannot be merged")
    model, name = sources[0]
    if not facts[0].floats:  # counters, seeds: there is no mean of them
        return Job(piece.name, facts[0], lambda: model.read(name), facts[0].nbytes)
    work = torch.float64 if any(each.dtype == torch.float64 for each in facts) else torch.float32
    out = Facts(facts[0].shape, getattr(torch, dtype) if dtype else model.stored(name))

    def make() -> Tensor:
        random = {"generator": generator(seed, piece.name)} if method.random else {}
        base = read(*piece.base, work) if piece.base else None
        return method(Tensors(piece.sources, work), base, chosen, **random)

    return Job(piece.name, out, make, facts[0].numel * work.itemsize * (len(sources) + 3))


def generator(seed: int, name: str) -> torch.Generator:
    """Random numbers of a tensor's own, so that they do not hang on the order in which tensors are made."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor is in; None for what is before or behind all layers."""
    found = LAYER.match(name)
    return int(found["layer"]) if found else None


def _in_layer(name: str, number: int) -> str:
    return LAYER.sub(rf"\g<before>{number}.\g<after>", name, count=1)


def _at(layer: int | None, depth: int) -> float:
    """How deep a layer lies; what is in none has a gradient's first value, as mergekit has it."""
    return layer / (depth - 1) if layer is not None and depth > 1 else 0.0


def of_one_kind(models: Sequence[Model]) -> None:
    """InputError where models are stored in different ways."""
    for model in models:
        if model.kind != models[0].kind:
            raise InputError(
                f"{model.named} is a {model.kind} folder and {models[0].named} a {models[0].kind} folder",
                "make a checkpoint of the one: synthe import hf",
            )


def compare(reference: Model, models: Sequence[Model], whole: bool) -> list[str]:
    """InputError where models that are merged `whole` differ in tensors; notices where they do in config."""
    notices = []
    for model in models:
        if model is reference:
            continue
        changed = differences(reference.config, model.config)
        hint = f"they differ in {'; '.join(changed[:LISTED])}" if changed else "they are not of one architecture"
        if whole:
            _same_tensors(reference, model, hint)
            if changed:
                notices.append(
                    f"{model.named} has another config, and {reference.named}'s is kept: {'; '.join(changed)}"
                )
    return notices


def _same_tensors(one: Model, other: Model, hint: str) -> None:
    here, there = one.tensors, other.tensors
    if lacking := [name for name in here if name not in there]:
        raise InputError(f"{other.named} has no tensor {_listed(lacking)}, which {one.named} has", hint)
    if extra := [name for name in there if name not in here]:
        raise InputError(f"{other.named} has a tensor {_listed(extra)}, which {one.named} has not", hint)
    if shapes := [name for name in here if here[name].shape != there[name].shape]:
        first = shapes[0]
        sizes = f"{list(here[first].shape)} in {one.named} and {list(there[first].shape)} in {other.named}"
        raise InputError(f"{_listed(shapes)}: {sizes}", hint)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
