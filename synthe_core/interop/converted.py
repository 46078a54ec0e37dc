"""A published model as a checkpoint: its recipe, and its tensors under our names, converted when they are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from synthe_core.data.spec import DataSpec
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Notice
from synthe_core.hardware.probe import probe
from synthe_core.interop.huggingface.context_limit import context_limit
from synthe_core.interop.huggingface.families import plan
from synthe_core.interop.huggingface.families.plan import Origin, Plan
from synthe_core.interop.huggingface.pretrained import without_floats
from synthe_core.interop.huggingface.published import Config, check_depth, check_widths, longest_side
from synthe_core.interop.published_shapes import Conversion, recorded_shapes
from synthe_core.interop.stored_rows import Stored, stored_matrix
from synthe_core.quantization.matrix import QuantizedMatrix
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint.read import WEIGHTS, digest_of
from synthe_core.storage.checkpoint.weights import weights
from synthe_core.storage.finite import check_finite
from synthe_core.storage.hub.snapshot import model_name, source_name
from synthe_core.storage.manifest import Manifest, describe_hardware, package_versions
from synthe_core.storage.tensor_file import Extent
from synthe_core.storage.yaml_reader import YamlSource

IGNORED = re.compile(r"\.rotary_emb\.inv_freq$")  # older versions saved this buffer, which follows from config.json
FINE_TUNING = {"optimizer": "adamw", "lr": 2e-5}  # the learning rates of pretraining would destroy trained weights
WIDTHS = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16}  # bits, for the order in which types are listed


class PublishedModel(Protocol):
    """A model as it is published: config.json of transformers, and tensors under its names."""

    path: Path
    config: Config
    format: str
    """Where it comes from: "huggingface" or "gguf"."""

    def __getitem__(self, name: str, /) -> Tensor: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, name: object, /) -> bool: ...

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor, without reading it."""
        ...

    def stored_as(self, name: str) -> str:
        """The name of a tensor's type. InputError for one that cannot be read."""
        ...

    def stored(self, name: str) -> Stored | None:
        """The stored rows of a matrix; None for another tensor."""
        ...

    def extents(self, name: str) -> list[Extent] | None:
        """Where the numbers of a tensor stand in files; None for one that is computed from them."""
        ...

    def digest(self) -> str:
        """SHA-256 of everything that its numbers depend on."""
        ...

    def tokenizer(self, vocab: int, notices: list[Notice]) -> Tokenizer | None:
        """Its tokenizer, None where it has none; what a user should know is added to `notices`."""
        ...


class ConvertedModel:
    """What a published model is in our terms. InputError for what cannot be expressed, by key or tensor."""

    def __init__(self, published: PublishedModel, name: str | None = None) -> None:
        self.published = published
        check_depth(published.config, sum(1 for _ in published))
        check_widths(published.config, longest_side(published))
        self.layout: Plan = plan(published.config).spelled_as(published)
        self.vocab = self.layout.vocab
        self.tie = _is_tied(published, self.layout)
        self.architecture = str(published.config.values["architectures"][0])
        self.name = name or recipe_name(published.path)
        self.notices: list[Notice] = [Notice(text) for text in self.layout.notices]

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        return self.published.tokenizer(self.vocab, self.notices)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that its numbers depend on."""
        return self.published.digest()

    @property
    def context(self) -> int | None:
        """The longest text that it is made for, None where there is no limit."""
        limits = (self.layout.context, context_limit(self.published.config))
        return min((limit for limit in limits if limit is not None), default=None)

    def recipe(self, tokenizer: Path | None) -> Recipe:
        """The recipe of the model, whose text is read by the tokenizer at a path."""
        values = {
            "name": self.name,
            "description": f"{self.architecture}, imported from {source_name(self.published.path)}",
            "model": self.layout.model(self.tie),
            "data": self._data(tokenizer),
            "train": FINE_TUNING,
        }
        return Recipe.from_source(YamlSource(str(self.published.path), values, {}))

    def _data(self, tokenizer: Path | None) -> dict[str, Any]:
        """The `data` of its recipe: sequences as long as usual, or as the model's positions reach."""
        usual = DataSpec().sequence
        limits = (self.layout.options.get("positions"), self.context)
        data: dict[str, Any] = {"sequence": min(usual, *(limit or usual for limit in limits))}
        return data if tokenizer is None else data | {"tokenizer": str(tokenizer)}

    @cached_property
    def tensors(self) -> ConvertedTensors:
        """Our tensors. InputError if the published model has a tensor that none of ours is made of."""
        try:
            own = weights(self.recipe(None).meta_model(self.vocab))
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{self.published.config.path} makes no model: {' '.join(str(error).split())[:200]}",
                "config and weights are of two models: copy it again",
            ) from None
        tensors = ConvertedTensors(self.published, self.layout.origins(self.tie), own)
        unused = tensors.unused(self.layout.ignored) - ({self.layout.head} if self.tie else set())
        if unused:
            raise InputError(
                f"{self.published.path} has a tensor {min(unused)}, which {self.architecture} has not by its config",
                "it is another architecture, or one with additions that synthe does not know",
            )
        return tensors

    def published_names(self) -> dict[str, Any]:
        """How the published model names its matrices: for adapters that were made for it."""
        shapes = {name: self.published.shape(name) for name in sorted(self.tensors.used)}
        return {"config": without_floats(self.published.config.values), "shapes": recorded_shapes(shapes)}

    def manifest(self) -> Manifest:
        origin: dict[str, Any] = {
            "format": self.published.format, "architecture": self.architecture, "stored": self.tensors.dtypes
        }  # fmt: skip
        origin["digest"] = digest_of({WEIGHTS: self.digest})  # sessions and adapters know the model by it
        origin |= self.published_names()
        if (context := self.context) is not None:
            origin["context"] = context
        return Manifest.model_validate(
            {
                "parameters": self.tensors.count,
                "parents": [source_name(self.published.path)],
                "source": origin,
                "versions": package_versions(),
                "hardware": describe_hardware(probe()),
            }
        )


class ConvertedTensors(Mapping[str, Tensor]):
    """Our tensors, each made of published ones when it is read. InputError if one is missing or has another shape."""

    def __init__(self, published: PublishedModel, origins: dict[str, Origin], own: Mapping[str, Tensor]) -> None:
        self.published, self.origins = published, origins
        assert origins.keys() == own.keys(), origins.keys() ^ own.keys()
        self._shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        kinds: set[str] = set()
        for name, origin in origins.items():
            for tensor in origin.names:
                if tensor not in published:
                    raise InputError(
                        f"{published.path} has no tensor {tensor}, which its config asks for",
                        "fetch every file of the model",
                    )
                kinds.add(published.stored_as(tensor))
            self._check(origin, own[name].shape)
        self.dtypes = "/".join(sorted(kinds, key=lambda kind: (-WIDTHS.get(kind, 0), kind)))
        self.count = sum(tensor.numel() for tensor in own.values())
        self.nbytes = self.count * torch.float32.itemsize

    def _check(self, origin: Origin, expected: torch.Size) -> None:
        shapes = [self.published.shape(tensor) for tensor in origin.names]
        try:
            made = origin.made([torch.empty(shape, device="meta") for shape in shapes]).shape
        except (RuntimeError, IndexError, ValueError):
            made = None
        if made != expected:
            actual = ", ".join(f"{tensor} {shape}" for tensor, shape in zip(origin.names, shapes, strict=True))
            should = f"and by its config that should be {list(expected)}{' together' if len(shapes) > 1 else ''}"
            if origin.make is not None:
                should = f"of which its config makes a tensor {list(expected)}"
            raise InputError(f"{self.published.path} has {actual}, {should}", "config and weights are of two models")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._shapes[name]

    @property
    def conversion(self) -> Conversion:
        return Conversion(self.origins, self._shapes, self.published)

    @property
    def used(self) -> set[str]:
        """The published tensors that ours are made of."""
        return {tensor for origin in self.origins.values() for tensor in origin.names}

    def unused(self, ignored: str | None) -> set[str]:
        """The published tensors that no tensor of ours is made of, except for names with the pattern `ignored`."""
        rest = {tensor for tensor in self.published if tensor not in self.used and not IGNORED.search(tensor)}
        return rest if ignored is None else {tensor for tensor in rest if not re.search(ignored, tensor)}

    def __getitem__(self, name: str) -> Tensor:
        path = self.published.path
        origin = self.origins[name]
        return origin.made([_exact(check_finite(each, self.published[each], path)) for each in origin.names]).to(
            torch.float32
        )

    def extents(self, name: str) -> list[Extent] | None:
        """Where our numbers stand in the model's files, in the type that they have there; None where a conversion does
        more than to put tensors one below the other."""
        origin = self.origins[name]
        parts = [self.published.extents(each) for each in origin.names]
        if origin.make is not None or any(each is None for each in parts):
            return None
        return [extent for each in parts if each is not None for extent in each]

    def quantized(self, name: str) -> QuantizedMatrix | None:
        """Our matrix in the format in which the model stores its rows, the same numbers to the last bit; None if the
        model has no such rows."""
        origin = self.origins[name]
        stored = [self.published.stored(each) for each in origin.names]
        if len(self._shapes[name]) != 2 or any(each is None for each in stored):
            return None
        made = [each for each in stored if each is not None]
        return stored_matrix(made, origin.made, origin.make is None, lambda: self[name])

    def release(self) -> None:
        """Gives back the memory of what was read of the files."""
        if (release := getattr(self.published, "release", None)) is not None:
            release()

    def __contains__(self, name: object) -> bool:
        return name in self.origins  # without reading the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.origins)

    def __len__(self) -> int:
        return len(self.origins)


def _exact(tensor: Tensor) -> Tensor:
    """At least as float32, which loses nothing."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def recipe_name(path: Path) -> str:
    """The name of the model at a path, in a recipe."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model_name(path)).lstrip("._-") or "imported"


def _is_tied(published: PublishedModel, layout: Plan) -> bool:
    """Whether embedding and head share a matrix: as the config says, unless there are two that differ."""
    if not layout.tie:
        return False
    if layout.head not in published or layout.embedding not in published:
        return True
    one, other = published[layout.head], published[layout.embedding]
    return one.shape == other.shape and bool(torch.equal(one, other))
