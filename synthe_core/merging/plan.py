"""Planning a merge: one job for each tensor of the result, all checked before any of them runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.merging.config import MergeSpec, SliceSpec
from synthe_core.merging.hashed_file import TensorInfo
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
    """One tensor of the result.

    sources, base: (model, name of its tensor). shared, own: settings of parameters for all models and for each source,
    by precedence. depth: of the layer, from 0 to 1.
    """

    name: str
    sources: list[tuple[Model, str]]
    base: tuple[Model, str] | None
    shared: Places
    own: Sequence[Places]
    depth: float


@dataclass(frozen=True)
class Plan:
    """jobs: in the order of reading. layers: with slices, the base's layers that the result has."""

    jobs: list[Job]
    layers: list[int] | None = None
    notices: list[str] = field(default_factory=list)


class Tensors(Sequence[Tensor]):
    """Tensors of several models in one dtype, each read when it is accessed."""

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
    """A tensor in `dtype`. InputError if it contains NaN or infinity."""
    tensor = model.read(name).to(dtype)
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        value = "NaN" if tensor.isnan().any() else "infinity"
        raise InputError(
            f"{name} of {model.named} contains {value}", "its training diverged: use an earlier checkpoint"
        )
    return tensor


def plan(spec: MergeSpec, method: Method, models: Mapping[str, Model], base: Model | None) -> Plan:
    """The jobs of a merge of `models`, by their names in `spec`. InputError for models that cannot be merged."""
    reference = base if base is not None else models[spec.inputs[0].model]
    notices = compare(reference, list(models.values()), whole=spec.slices is None)
    if spec.slices is not None:
        pieces, layers = _sliced(spec, spec.slices, method, models, base)
    else:
        pieces, layers = _whole(spec, method, models, base, reference), None
    dtype = spec.out_dtype or spec.dtype
    jobs = {piece.name: _job(piece, method, dtype, spec.seed) for piece in pieces}
    copies = [replace(jobs[source], name=copy) for copy, source in reference.copies.items() if source in jobs]
    return Plan([*jobs.values(), *copies], layers, notices)


def merged_models(spec: MergeSpec, method: Method, base: str | None) -> list[str]:
    """The models of `spec` that are merged: all but the base, if the method takes one."""
    if not method.takes_base or base is None:
        return [each.model for each in spec.inputs]
    return [each.model for each in spec.inputs if not _same(each.model, base)]


def _same(one: str, other: str) -> bool:
    """Whether two names are of the same folder."""
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def _whole(
    spec: MergeSpec, method: Method, models: Mapping[str, Model], base: Model | None, reference: Model
) -> list[Piece]:
    names = merged_models(spec, method, spec.base_model)
    method.check_count(len(names))
    parameters = {each.model: each.parameters for each in spec.models or []}
    own = [[parameters[name], spec.parameters] for name in names]
    depth = 1 + max((layer for name in reference.tensors if (layer := layer_of(name)) is not None), default=0)
    return [
        Piece(
            tensor,
            [(models[name], tensor) for name in names],
            (base, tensor) if base is not None and method.takes_base else None,
            [spec.parameters],
            own,
            _depth(layer_of(tensor), depth),
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
            tensors = [name for name in models[first].tensors if layer_of(name) == origin[first]]
            if not tensors:
                raise InputError(
                    f"{first} has no layer {origin[first]}",
                    f"layer_range {list(piece.sources[0].layer_range)} is beyond it",
                )
            length = piece.sources[0].layer_range[1] - piece.sources[0].layer_range[0]
            depth = _depth(offset, length)
            pieces += [_part(name, origin, len(layers), piece, spec, method, models, base, depth) for name in tensors]
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
    depth: float,
) -> Piece:
    """One tensor of a slice: `name` in the first source, and its counterpart in layer `origin[model]` of each model."""
    names = [model for model in origin if not (method.takes_base and model == spec.base_model)]
    method.check_count(len(names))
    parameters = {each.model: each.parameters for each in piece.sources}
    sources = [(models[model], _in_layer(name, origin[model])) for model in names]
    layer = next(iter(origin.values()))
    base_source = (
        (base, _in_layer(name, origin.get(spec.base_model or "", layer))) if base and method.takes_base else None
    )
    for model, tensor in [*sources, *([base_source] if base_source else [])]:
        if tensor not in model.tensors:
            raise InputError(f"{model.named} has no tensor {tensor}", "the models of a slice must have the same layers")
    shared = [piece.parameters, spec.parameters]
    return Piece(
        _in_layer(name, number),
        sources,
        base_source,
        shared,
        [[parameters[m], piece.parameters, spec.parameters] for m in names],
        depth,
    )


def _job(piece: Piece, method: Method, dtype: str | None, seed: int) -> Job:
    chosen = values(method, piece.shared, piece.own, piece.name, piece.depth)
    sources = [*([piece.base] if piece.base else []), *piece.sources]
    infos = [model.tensors[name] for model, name in sources]
    if len({each.shape for each in infos}) > 1:
        shapes = ", ".join(f"{list(each.shape)} in {m.named}" for each, (m, _) in zip(infos, sources, strict=True))
        raise InputError(f"{piece.name} is {shapes}", "tensors of different shapes cannot be merged")
    kinds = {each.floats for each in infos}
    if len(kinds) > 1:
        types = ", ".join(f"{NAMES[each.dtype]} in {m.named}" for each, (m, _) in zip(infos, sources, strict=True))
        raise InputError(f"{piece.name} is {types}", "integers and floats cannot be merged")
    model, name = sources[0]
    if not infos[0].floats:  # counters and seeds have no mean
        return Job(piece.name, infos[0], lambda: model.read(name), infos[0].nbytes)
    work = torch.float64 if any(each.dtype == torch.float64 for each in infos) else torch.float32
    out = TensorInfo(infos[0].shape, getattr(torch, dtype) if dtype else model.result_dtype(name))

    def compute() -> Tensor:
        random = {"generator": generator(seed, piece.name)} if method.random else {}
        base = read(*piece.base, work) if piece.base else None
        return method(Tensors(piece.sources, work), base, chosen, **random)

    return Job(piece.name, out, compute, infos[0].numel * work.itemsize * (len(sources) + 3))


def generator(seed: int, name: str) -> torch.Generator:
    """A random generator of a tensor's own, so that results do not depend on the order of tensors."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def layer_of(name: str) -> int | None:
    """The number of a tensor's layer; None for tensors before or after all layers."""
    match = LAYER.match(name)
    return int(match["layer"]) if match else None


def _in_layer(name: str, number: int) -> str:
    return LAYER.sub(rf"\g<before>{number}.\g<after>", name, count=1)


def _depth(layer: int | None, depth: int) -> float:
    """The depth of a layer, from 0 to 1; tensors outside layers have depth 0, as in mergekit."""
    return layer / (depth - 1) if layer is not None and depth > 1 else 0.0


def require_one_kind(models: Sequence[Model]) -> None:
    """InputError if models are of different kinds."""
    for model in models:
        if model.kind != models[0].kind:
            raise InputError(
                f"{model.named} is a {model.kind} folder and {models[0].named} a {models[0].kind} folder",
                "make a checkpoint of the one: synthe import hf, or synthe pack",
            )


def compare(reference: Model, models: Sequence[Model], whole: bool) -> list[str]:
    """InputError if models that are merged as a `whole` differ in tensors; notices if they differ in config."""
    notices = []
    for model in models:
        if model is reference:
            continue
        changed = differences(reference.config, model.config)
        hint = f"they differ in {'; '.join(changed[:LISTED])}" if changed else "they are not of one architecture"
        if model.vocab != reference.vocab and not changed:
            hint = (
                f"they have {reference.vocab} and {model.vocab} tokens: with a tokenizer.json each, --tokenizer union"
            )
        if whole:
            _same_tensors(reference, model, hint)
            if changed:
                notices.append(f"{model.named} has another config; {reference.named}'s is used: {'; '.join(changed)}")
    return notices


def _same_tensors(one: Model, other: Model, hint: str) -> None:
    here, there = one.tensors, other.tensors
    if missing := [name for name in here if name not in there]:
        raise InputError(f"{other.named} has no tensor {listed(missing)}, which {one.named} has", hint)
    if extra := [name for name in there if name not in here]:
        raise InputError(f"{other.named} has a tensor {listed(extra)}, which {one.named} has not", hint)
    if shapes := [name for name in here if here[name].shape != there[name].shape]:
        first = shapes[0]
        sizes = f"{list(here[first].shape)} in {one.named} and {list(there[first].shape)} in {other.named}"
        raise InputError(f"{listed(shapes)}: {sizes}", hint)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
