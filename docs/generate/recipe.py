"""The keys of a recipe, from its JSON Schema."""

from __future__ import annotations

import json
from typing import Any

from docs.generate.markdown import escaped
from docs.generate.schema import keys
from synthe_core.layers import LAYERS
from synthe_core.recipe.schema import Recipe

LEARNERS = "learners.md"


def schema_text() -> str:
    """The JSON Schema of recipes, as `synthe recipe schema` prints it."""
    return json.dumps(Recipe.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def definitions() -> dict[str, Any]:
    """The parts of a recipe with names of their own, but not the learners."""
    described = Recipe.model_json_schema()["$defs"]
    return {name: schema for name, schema in described.items() if not name.startswith("synthe_core__")}


def links(page: str = "") -> dict[str, str]:
    """Where each part is described: name -> link from a page beside this one."""
    learners = {reference_of(name): f"{LEARNERS}#{name}" for name in LAYERS}
    return {name: f"{page}#{name.lower()}" for name in definitions()} | learners


def reference_of(learner: str) -> str:
    """The name that the schema has for a learner's configuration where several parts refer to it."""
    config = LAYERS[learner].Config
    return f"{config.__module__}.{config.__qualname__}".replace(".", "__")


def page() -> str:
    """recipe.md: the top level, then every part in the order in which a reader meets them."""
    whole = Recipe.model_json_schema()
    parts = definitions()
    parts["ModelSpec"] = _with_learners(parts["ModelSpec"])
    order = ["ModelSpec", "DataSpec", "TrainSpec", "RuntimeSpec"]
    order += [name for name in parts if name not in order]
    sections = [
        "# Recipe\n",
        "Every key of a recipe. An unknown key is an error that names its line and the nearest key. "
        "`synthe recipe schema` prints the same as JSON Schema "
        "([recipe.schema.json](recipe.schema.json)), for an editor that completes and checks YAML. "
        f"The keys of the learners are on a page of their own: [Learners]({LEARNERS}).\n",
        "## Recipe\n",
        keys(whole, links()),
    ]
    for name in order:
        sections += [f"## {name}\n", _description(parts[name]), keys(parts[name], links())]
    return "\n".join(part for part in sections if part)


def _description(schema: dict[str, Any]) -> str:
    text = schema.get("description", "")
    return f"{escaped(text)}\n" if text and "\n\n" not in text else _first_and_code(text)


def _first_and_code(text: str) -> str:
    first, _, rest = text.partition("\n\n")
    return f"{escaped(first)}\n\n```text\n{rest.strip(chr(10))}\n```\n" if rest else f"{escaped(first)}\n"


def _with_learners(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a model in which `block` is a list of learners, each described on its own page, or several."""
    learners = {"type": "array", "items": {"enum": list(LAYERS)}}
    kinds = {"anyOf": [learners, {"const": "a list of such lists"}]}
    block = {"description": schema["properties"]["block"]["description"], **kinds}
    return {**schema, "properties": {**schema["properties"], "block": block}}
