"""The model of a recipe that distils: made from its teacher's."""

from __future__ import annotations

from typing import Any

import yaml

from synthe_core.errors import InputError
from synthe_core.interop.published_source import PublishedSource
from synthe_core.model.student_spec import NO_TEACHER, StudentSpec, student_spec
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.hub.snapshot import origin_of, reference_to
from synthe_core.storage.yaml_reader import parse_yaml
from synthe_core.training.distillation.teacher import Teacher


def with_student(recipe: Recipe) -> Recipe:
    """The recipe with the model that `model.from_teacher` describes, and the teacher's tokenizer unless it names one.

    A recipe with a model of its own is returned as it is. InputError where no teacher is named, or it has no attention.
    """
    if not isinstance(recipe.model, StudentSpec):
        return recipe
    path = getattr(recipe.objective, "teacher", None)
    if path is None:
        raise InputError(*NO_TEACHER)
    teacher = Teacher(path).checkpoint
    model = student_spec(recipe.model.from_teacher, teacher.recipe.model)
    values = recipe.model_dump(mode="json") | {"model": model.model_dump(mode="json")}
    if "tokenizer" not in recipe.data.model_fields_set:
        values["data"] = values["data"] | {"tokenizer": tokenizer_of(teacher)}
    return Recipe.from_source(parse_yaml(yaml.safe_dump(values, sort_keys=False), f"the student of {path}"))


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The `data.tokenizer` of a recipe whose text is in a checkpoint's tokens."""
    model = checkpoint.base or checkpoint
    if model.recipe.data.tokenizer.type == "bytes":
        return "bytes"
    on_disk = model.source.on_disk and not isinstance(model.source, PublishedSource) and origin_of(model.path) is None
    return str(model.path / "tokenizer.json") if on_disk else reference_to(model.path)
