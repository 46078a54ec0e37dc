"""A checkpoint as what transformers' loading takes: a configuration, tensors and the defaults of generation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.interop.huggingface.auto_classes.configuration import SyntheConfig
from synthe_core.model.language_model import ModelSpec
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.checkpoint.weights import check_names, check_shape, weights
from synthe_core.storage.checkpoint.write import model_config
from synthe_core.storage.finite import check_finite
from synthe_core.storage.path_format import format_of


class Loaded(NamedTuple):
    """A checkpoint that has been opened and checked. generation: None without a tokenizer."""

    config: SyntheConfig
    tensors: dict[str, Tensor]
    generation: Any


def open_checkpoint(name: Any, options: Mapping[str, Any]) -> Loaded | None:
    """The checkpoint at a path; None for a hub id, and for a folder that transformers reads itself. InputError for a
    damaged one, or one of an encoder."""
    path = Path(str(name))
    if name is None or options.get("subfolder") or not path.exists() or format_of(path) == "huggingface":
        return None
    checkpoint = Checkpoint.open(path)
    (checkpoint.base or checkpoint).check_sizes()
    recipe = checkpoint.recipe
    if recipe.model.head is not None:
        raise InputError(f"{path} is an encoder, which is no language model", "synthe itself runs encoders")
    without = checkpoint.manifest.without or (checkpoint.base or checkpoint).manifest.without
    config = model_config(recipe, checkpoint.vocab, (), checkpoint.context) | {"without": without}
    has_tokenizer = "tokenizer.json" in (checkpoint.base or checkpoint).manifest.files
    generation = _generation_config(checkpoint.tokenizer().generation_config) if has_tokenizer else None
    return Loaded(SyntheConfig.from_dict(config), _tensors(checkpoint), generation)


def model_spec(config: SyntheConfig) -> ModelSpec:
    """The model of a configuration. InputError if it has none that synthe knows."""
    try:
        return ModelSpec.model_validate(config.model)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, ("model", *first["loc"])))
        raise InputError(
            f"config.json: {place}: {first['msg']}", "a newer synthe may have written it: pip install -U synthe"
        ) from None


def check_loaded(name: Any, report: Mapping[str, Any]) -> None:
    """InputError if a folder's tensors are not those of the model that its config.json describes."""
    for key, problem in (("missing_keys", "has no tensor {}, which the model needs"),
                         ("unexpected_keys", "has a tensor {}, which the model has not")):  # fmt: skip
        if report.get(key):
            first = min(map(str, report[key]))
            raise InputError(f"{name} {problem.format(first)}", "config.json and weights are of two models")


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Its tensors. InputError if one is missing, has another shape, or is not finite."""
    own, stored = weights(checkpoint.recipe.meta_model(checkpoint.vocab)), checkpoint.tensors
    check_names(own, stored, checkpoint.path)
    tensors = {}
    for name, target in own.items():
        tensors[name] = check_finite(name, stored[name], checkpoint.path)
        check_shape(name, target, tuple(tensors[name].shape), checkpoint.path)
    return tensors


def _generation_config(values: Mapping[str, Any]) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig.from_dict(dict(values))
