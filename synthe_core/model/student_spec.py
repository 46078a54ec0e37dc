"""A student in a recipe: the model of its teacher, with other learners in the place of attention."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers import LAYERS, LearnerSpec
from synthe_core.layers.learner import Spec
from synthe_core.model.block import residual_of
from synthe_core.model.spec import ModelSpec

NO_TEACHER = (
    "the student's model is made from a teacher's, and none is named",
    "name one: --teacher MODEL, or --set objective.teacher=MODEL",
)
"""Message and hint of the error."""


class StudentRule(Spec):
    """Which of a teacher's attention layers become what."""

    learner: LearnerSpec = Field(
        ...,
        description="what takes attention's place; its heads and their sizes are the teacher's unless it has its own",
    )
    keep: Annotated[float, Field(ge=0, le=1)] | list[Annotated[int, Field(ge=0)]] = Field(
        0.0, description="the share of attention layers that stay, spread evenly over the depth; or the blocks of them"
    )


class StudentSpec(ModelSpec):
    """The model of a teacher that the objective names. It has no sizes before `student_spec` makes it a ModelSpec."""

    from_teacher: StudentRule = Field(..., description="which of the teacher's attention layers become what")
    width: Literal[1] = Field(1, description="the teacher's")
    blocks: Literal[1] = Field(1, description="the teacher's")
    block: list[list[Any]] = Field([[]], max_length=1, description="always empty")


def student_spec(rule: StudentRule, teacher: ModelSpec) -> ModelSpec:
    """The teacher's model with the rule's learner in the place of its attention, but for the layers that stay.

    InputError for a teacher without attention, and for a block that has none.
    """
    layers = [
        (block, place)
        for block in range(teacher.blocks)
        for place, spec in enumerate(teacher.learners_of(block))
        if spec.type == "attention"  # type: ignore[attr-defined]
    ]
    if not layers:
        raise InputError("the teacher has no attention, which a student would replace", "give a Transformer")
    staying = _staying(rule, layers)
    blocks = []
    for block in range(teacher.blocks):
        learners = list(teacher.learners_of(block))
        for place, spec in enumerate(learners):
            if (block, place) in layers and block not in staying:
                learners[place] = _learner(rule.learner, spec, teacher.width)
        blocks.append([each.model_dump(mode="json") for each in learners])
    values = teacher.model_dump(mode="json") | {"block": _shortest_period(blocks)}
    return ModelSpec.model_validate(values)


def _staying(rule: StudentRule, layers: list[tuple[int, int]]) -> set[int]:
    """The blocks whose attention stays."""
    blocks = [block for block, _ in layers]
    if isinstance(rule.keep, list):
        if strange := sorted(set(rule.keep) - set(blocks)):
            raise InputError(
                f"model.from_teacher.keep: block {strange[0]} of the teacher has no attention",
                f"blocks with attention: {', '.join(map(str, blocks))}",
            )
        return set(rule.keep)
    count = round(rule.keep * len(blocks))
    return {blocks[int((number + 0.5) * len(blocks) / count)] for number in range(count)}


def _learner(learner: Spec, attention: Any, width: int) -> Spec:
    """The learner with the sizes of the attention that it replaces, where it does not have its own."""
    size = attention.head_size or max(1, width // attention.heads)
    sizes = {name: size for name in ("key_size", "value_size", "head_size", "state_size")}
    sizes |= {"heads": attention.heads, "groups": attention.heads, "kv_heads": attention.kv_heads or attention.heads}
    config: Any = LAYERS[learner.type].Config  # type: ignore[attr-defined]
    given = learner.model_dump(mode="json", exclude_unset=True)
    if config is type(attention):
        filled = attention.model_dump(mode="json")
    else:
        filled = {key: value for key, value in sizes.items() if key in config.model_fields}
    residual = residual_of(attention).model_dump(mode="json") if attention.residual is not None else None
    result: Spec = config.model_validate({**filled, "residual": residual, **given})
    return result


def _shortest_period(blocks: list[Any]) -> list[Any]:
    """The fewest first blocks that, repeated, give all."""
    for period in range(1, len(blocks) + 1):
        if all(block == blocks[index % period] for index, block in enumerate(blocks)):
            return blocks[:period]
    return blocks
