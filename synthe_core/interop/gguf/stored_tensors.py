"""The tensors of a GGUF file from those of a model of ours: what the reader does, from the other end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.interop.gguf.architectures import ARCHITECTURES, file_config, number_of_experts, tensor_places
from synthe_core.interop.gguf.description import Description, PlannedFile
from synthe_core.interop.gguf.families.architecture import Architecture, Change, transform_of
from synthe_core.interop.gguf.metadata import Metadata
from synthe_core.interop.gguf.outline import Outline, difference, places
from synthe_core.interop.huggingface.families import plan
from synthe_core.interop.huggingface.families.plan import Origin, Plan
from synthe_core.interop.huggingface.published import Config
from synthe_core.interop.published_parts import moved_back, published_parts
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.storage.checkpoint import Checkpoint, weights
from synthe_core.storage.finite import check_finite

SUFFIXES = (".weight", ".bias", "")


class OtherModel(InputError):
    """An architecture that computes another model."""


class Source(NamedTuple):
    """What a stored tensor is made of: transformers' tensor, which of the stored ones it gives, and which part of that
    one along its first dimension; None for all of it."""

    published: str
    place: int
    part: int | None


class FileModel:
    """The model that the reader makes of a description, and what each of its tensors is in the file. OtherModel if it
    is not the one of `outline`."""

    def __init__(self, name: str, description: Description, outline: Outline) -> None:
        self.name, self.description, self.outline = name, description, outline
        self.architecture: Architecture = ARCHITECTURES[name]
        self._data = self._metadata(description.present)
        self.config = file_config(self.architecture, self._data, outline.vocab)
        self.layout: Plan = plan(Config(self._data.path, self.config))
        spec = ModelSpec.model_validate(self.layout.model(self.layout.tie))
        with torch.device("meta"):
            self.model = LanguageModel(spec, outline.vocab)
        if (other := difference(description.outline or outline, Outline(self.model, outline.context))) is not None:
            raise OtherModel(f"{name}: {other}")
        self.layers = self._data.layers()
        self.shapes: Mapping[str, Tensor] = weights(self.model)
        self.origins = self.layout.origins(self.layout.tie)
        self._of = {each: (ours, i) for ours, made in self.origins.items() for i, each in enumerate(made.names)}
        self.sources = self._sources()
        again = self._metadata(self.sources.keys())
        assert file_config(self.architecture, again, outline.vocab) == self.config, name

    def _metadata(self, present: Any) -> Metadata:
        return Metadata(PlannedFile(self.name, self.description.metadata, present, self.description.constants))

    def _sources(self) -> dict[str, list[Source]]:
        """By the name of a stored tensor, in the order of the architecture's names."""
        sources: dict[str, list[Source]] = {}
        rest = set(self._of)
        for name, place in tensor_places(self.architecture, self._data, number_of_experts(self.config)):
            for suffix in SUFFIXES:
                if (published := name + suffix) in rest:
                    rest.remove(published)
                    for index, stored in enumerate(place.names):
                        sources.setdefault(stored + suffix, []).append(Source(published, index, place.part))
        if rest:
            raise OtherModel(f"{self.name}: it has no place for {min(rest)}")
        return sources

    def made(self, stored: str, ours: Callable[[str], Tensor]) -> Tensor:
        """A stored tensor. ours: our tensors by name, as the reader's model has them; they may be on device meta."""
        parts = [self._stored(source, ours) for source in self.sources[stored]]
        return parts[0] if self.sources[stored][0].part is None else torch.stack(parts)

    def _stored(self, source: Source, ours: Callable[[str], Tensor]) -> Tensor:
        name, place = self._of[source.published]
        published = ours(name) if _is_itself(self.origins[name]) else self._parts(name, ours)[place]
        transform = transform_of(self.architecture.transforms(self.config), source.published)
        if transform is None:
            return published
        if not isinstance(transform, Change):
            return moved_back(transform, [tuple(published.shape)], published)[0]
        written = transform.write(published)
        return written if isinstance(written, Tensor) else written[source.place]

    def _parts(self, name: str, ours: Callable[[str], Tensor]) -> tuple[Tensor, ...]:
        """The published tensors that ours is made of; those of the last one are remembered, as they come in a row."""
        tensor = ours(name)
        if tensor.is_meta:
            return published_parts(self.origins[name], tensor)
        if getattr(self, "_last", ("",))[0] != name:
            self._last = name, published_parts(self.origins[name], tensor)
        return self._last[1]


def _is_itself(made: Origin) -> bool:
    return len(made.names) == 1 and made.make is None


class SourceTensors:
    """Our tensors as the model that the reader makes has them, each read from a checkpoint on access: a
    missing bias is zeros, the weight of a missing norm ones, and the rest the tensor of the learner at its place."""

    def __init__(self, checkpoint: Checkpoint, target: FileModel) -> None:
        self._tensors, self._path, self._target = checkpoint.tensors, checkpoint.path, target
        self._spec = target.outline.spec
        there = places(Outline(target.model, 0))
        self._places = dict(zip(there, places(target.outline), strict=True))
        own = weights(target.outline.model)
        self._names = {name: self._own(name) for name in target.shapes}
        unused = own.keys() - set(self._names.values()) - ({"head.weight"} if target.layout.tie else set())
        if left := sorted(name for name in unused if not name.startswith(LEFT_OUT)):
            raise OtherModel(f"{target.name}: it has no tensor for {left[0]}")
        self._known = own.keys()

    def _own(self, name: str) -> str:
        """Our name of a tensor of the reader's model."""
        parts = name.split(".")
        if name == "head.weight" and self._spec.tie:
            return "embedding.weight"
        if parts[0] != "blocks":
            return name
        block, place = self._places[int(parts[1]), int(parts[3])]
        return ".".join(["blocks", str(block), parts[2], str(place), *parts[4:]])

    def __call__(self, name: str) -> Tensor:
        """InputError for a number that is not finite."""
        own = self._names[name]
        if own not in self._known:
            fill = torch.ones if own.endswith("norm") or own.endswith("norm.weight") else torch.zeros
            return fill(self._target.shapes[name].shape)
        tensor = check_finite(own, self._tensors[own], self._path).to(torch.float32)
        if name == "embedding.weight" and self._spec.embed_norm:
            tensor = F.rms_norm(tensor, (tensor.shape[1],), eps=self._spec.norm_eps)
        fold = self._target.description.folds.get(name if name == "head.weight" else own)
        return tensor if fold is None else fold(tensor)


LEFT_OUT = ("confidence.",)
"""What begins the names of tensors that no file has a place for, and that no logit depends on."""


def stored_tensors(checkpoint: Checkpoint, target: FileModel) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """The name and shape of each tensor of the file, and what reads it."""
    ours = SourceTensors(checkpoint, target)
    for stored in target.sources:
        shape = target.made(stored, target.shapes.__getitem__).shape
        yield stored, tuple(shape), partial(target.made, stored, ours)
    for stored, tensor in target.description.constants.items():
        yield stored, tuple(tensor.shape), lambda tensor=tensor: tensor
