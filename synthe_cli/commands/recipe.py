"""`synthe recipe`: a recipe's sizes and cost, its validation, and the schema of recipes."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from synthe_cli.escape import printable
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import (
    JsonOption,
    ModelOrRecipeArgument,
    RecipeArgument,
    SetOption,
    find_recipe,
    find_recipe_or_model,
    overrides,
)
from synthe_core.units import format_count, format_size

app = typer.Typer(cls=Group, help="Show, validate or describe recipes.", **SETTINGS)


@app.command(
    cls=Command,
    short_help="Print a recipe in full, with its sizes and costs.",
    epilog="""\
synthe recipe show tiny                                  every key, and the size of the model
synthe recipe show recipes/60m.yaml --set model.width=768
synthe recipe show tiny > mine.yaml                      a recipe to start from
synthe recipe show 60m --json | jq .parameters.total""",
)
def show(recipe: ModelOrRecipeArgument, assign: SetOption = None, as_json: JsonOption = False) -> None:
    """Print a recipe with every key resolved, and its parameters, state and cost as comments above.

    State is the memory of one sequence during inference. FLOPs per token are given for the forward pass and training.
    """
    from synthe_core.recipe.accounting import account
    from synthe_core.storage.checkpoint.recipe import load_recipe
    from synthe_core.training.distillation.student import with_student

    loaded = with_student(load_recipe(find_recipe_or_model(recipe), overrides(None, assign)))
    cost = account(loaded)
    if as_json:
        print(json.dumps({"recipe": loaded.model_dump(mode="json"), "digest": loaded.digest(), **cost.as_dict()}))
        return
    total = cost.parameters
    lines = [f"{loaded.name}  {loaded.digest()}", f"parameters          {format_count(total)} ({total:,})"]
    if cost.active_parameters != total:
        active = cost.active_parameters
        lines += [f"  active per token  {format_count(active):>6}  {active / total:5.1%}"]
    lines += [f"  {name:<18}{format_count(n):>6}  {n / total:5.1%}" for name, n in cost.by_learner.items()]
    lines += [
        f"state per sequence  {_growth(cost.state_bytes)}",
        f"FLOPs per token     {format_count(cost.flops)} forward, {format_count(3 * cost.flops)} in training, "
        f"at {cost.sequence} tokens",
        f"vocabulary          {cost.vocabulary}",
    ]
    print("\n".join(f"# {line}" for line in lines))
    text = loaded.to_yaml()
    print(printable(text) if sys.stdout.isatty() else text, end="")


@app.command(
    cls=Command,
    short_help="Check a recipe; exit code 2 if it is invalid.",
    epilog="""\
synthe recipe validate mine.yaml
synthe recipe validate mine.yaml && synthe train mine.yaml""",
)
def validate(recipe: RecipeArgument, assign: SetOption = None) -> None:
    """Check a recipe without training: keys, types, names of learners, and whether the sizes match.

    Prints one line and exits with 0, or reports the invalid key and exits with 2.
    """
    from synthe_core.data.prepare import corpora
    from synthe_core.recipe.accounting import account
    from synthe_core.recipe.schema import Recipe
    from synthe_core.training.distillation.student import with_student

    path = find_recipe(recipe)
    loaded = with_student(Recipe.load(path, overrides(None, assign)))
    corpora(loaded.data)  # raises if a source does not exist; makes no request to the hub
    print(f"{path}: valid, {format_count(account(loaded).parameters)} parameters")


@app.command(
    cls=Command,
    short_help="Print the JSON Schema of recipes.",
    epilog="""\
synthe recipe schema > recipe.schema.json                for completion and checks in an editor
synthe recipe schema delta                               the keys of one learner""",
)
def schema(
    learner: Annotated[str | None, typer.Argument(metavar="[LEARNER]", help="Only the keys of this learner.")] = None,
) -> None:
    """Print the JSON Schema of recipes: every key, its type, default and meaning."""
    from synthe_core.layers import LAYERS
    from synthe_core.recipe.schema import Recipe

    config = LAYERS[learner].Config if learner else Recipe
    print(json.dumps(config.model_json_schema(), indent=2))


def _growth(state_bytes: dict[int, int]) -> str:
    if not any(state_bytes.values()):
        return "none"
    if len(set(state_bytes.values())) == 1:
        return f"{format_size(next(iter(state_bytes.values())))} at any length"
    return ", ".join(f"{format_size(size)} after {tokens:,}" for tokens, size in state_bytes.items()) + " tokens"
