"""A folder of transformers that holds a model of ours: what `save_pretrained`, its Trainer and `export hf` write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.interop.converted import FINE_TUNING, ConvertedModel, PublishedModel, recipe_name
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint.weights import check_names, check_shape, weights
from synthe_core.storage.finite import check_finite
from synthe_core.storage.manifest import Manifest
from synthe_core.storage.path_format import ARCHITECTURE, MODEL_TYPE
from synthe_core.storage.yaml_reader import YamlSource

HEAD, EMBEDDING = "head.weight", "embedding.weight"


def is_own(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model of ours."""
    return values.get("model_type") == MODEL_TYPE


def converted(published: PublishedModel, name: str | None = None) -> ConvertedModel:
    """The published model in our terms."""
    return (SavedModel if is_own(published.config.values) else ConvertedModel)(published, name)


class SavedModel(ConvertedModel):
    """A model of ours in a folder of transformers: its recipe is in config.json, and its tensors have our names."""

    def __init__(self, published: PublishedModel, name: str | None = None) -> None:
        config = published.config
        self.published, self.vocab, self.architecture = published, config.size("vocab_size"), ARCHITECTURE
        self.name, self.notices = name or recipe_name(published.path), []
        if not (spec := config.inner("model").values):
            raise InputError(f"{config.path} has no model", "copy the folder again")
        self.spec, self.tie = spec, bool(spec.get("tie", True))
        if spec.get("head") is not None:
            raise InputError(f"{published.path} is an encoder, which is no language model", "give a language model's")

    def recipe(self, tokenizer: Path | None) -> Recipe:
        values = {
            "name": self.name,
            "description": f"read from {self.published.path}",
            "model": self.spec,
            "data": {"sequence": self.published.config.size("sequence", Recipe.model_fields["data"].default.sequence)}
            | ({} if tokenizer is None else {"tokenizer": str(tokenizer)}),
            "train": FINE_TUNING,
        }
        return Recipe.from_source(YamlSource(str(self.published.config.path), values, {}))

    @cached_property
    def tensors(self) -> SavedTensors:  # type: ignore[override]
        recipe = self.recipe(None)
        learners = sum(len(recipe.model.learners_of(index)) for index in range(recipe.model.blocks))
        if learners > sum(1 for _ in self.published):
            raise InputError(f"{self.published.path} holds no weights of the model in its config.json", "copy it again")
        return SavedTensors(self.published, weights(recipe.meta_model(self.vocab)))

    @property
    def context(self) -> int | None:
        return None if self.published.config.get("context") is None else self.published.config.size("context")

    def published_names(self) -> dict[str, Any]:
        """None: its names are ours."""
        return {}

    def manifest(self) -> Manifest:
        without = [str(name) for name in self.published.config.items("without", [])]
        return super().manifest().model_copy(update={"without": without})


class SavedTensors(Mapping[str, Tensor]):
    """The tensors that a model has, floating-point ones in float32. InputError if one is missing, has another shape, or
    belongs to no part of the model."""

    def __init__(self, published: PublishedModel, own: Mapping[str, Tensor]) -> None:
        self._published = published
        tied = {HEAD} if HEAD not in own and HEAD in published and EMBEDDING in published else set()
        if tied and not torch.equal(published[HEAD], published[EMBEDDING]):
            raise InputError(
                f"{published.path} has a {HEAD} of its own, and model.tie is true", "they are of two models"
            )
        check_names(own, {*published} - tied, published.path)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        for name, tensor in own.items():
            check_shape(name, tensor, tuple(published.shape(name)), published.path)
        self.count = sum(tensor.numel() for tensor in own.values())
        self.nbytes = self.count * torch.float32.itemsize
        first = published[EMBEDDING].dtype if EMBEDDING in published else torch.float32
        self.dtypes = str(first).removeprefix("torch.")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        tensor = check_finite(name, self._published[name], self._published.path)
        return tensor.to(torch.float32) if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
