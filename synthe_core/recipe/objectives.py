"""How a recipe's `objective` becomes the configuration of one of the table."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, SerializeAsAny

from synthe_core.layers.learner import Spec
from synthe_core.layers.table_entry import parse_entry
from synthe_core.recipe.objective_table import OBJECTIVES

Reads = Literal["text", "conversations", "preferences", "ratings"]
"""What an objective trains on: running text, or rows of conversations, preferences or ratings (see `DataSpec`)."""


class ObjectiveConfig(Spec):
    """Base of the objectives' configurations; `type` names the objective."""

    type: str


def parse(entry: Any) -> Any:
    """A recipe's `{type: dpo, beta: 0.1}`, or `dpo`, as that objective's Config; errors keep the place of the key."""
    return entry if entry is None or isinstance(entry, Spec) else parse_entry(OBJECTIVES, entry)


class _AnyObjective:
    """Gives the field its JSON Schema: any objective of the table."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        choices = [handler(OBJECTIVES[name].Config.__pydantic_core_schema__) for name in OBJECTIVES]
        return {"anyOf": [*choices, {"type": "null"}]}


ObjectiveSpec = Annotated[SerializeAsAny[ObjectiveConfig] | None, BeforeValidator(parse), _AnyObjective()]
"""A field that holds the configuration of any objective of the table, or null."""
