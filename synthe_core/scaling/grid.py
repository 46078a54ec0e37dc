"""A grid of recipes: learners, widths, depths, and tokens or FLOPs, with rates that follow the width."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, unknown
from synthe_core.layers import LAYERS
from synthe_core.recipe.accounting import account
from synthe_core.recipe.schema import Recipe
from synthe_core.scaling.rates import RateRule
from synthe_core.sweep.grid import Axis, PlannedRun, check_runs, load_run
from synthe_core.units import format_count

SCALED = ("heads", "kv_heads", "value_heads", "hidden")
"""Keys of a learner that grow with the width; all others stay."""
CHANNEL_MIXING = ("mlp", "channel_mixing", "experts", "context_routed_moe")


@dataclass(frozen=True)
class Grid:
    """What is combined. Of `tokens` and `flops`, FLOPs of a whole training, one is empty.

    learners: each replaces the recipe's block by itself and an MLP, with heads of `head_size` channels; without any,
              the recipe's own block is scaled: its heads and hidden sizes grow with the width.
    """

    widths: Sequence[int]
    blocks: Sequence[int]
    tokens: Sequence[float] = ()
    flops: Sequence[float] = ()
    learners: Sequence[str] = ()
    head_size: int = 32


def plan_grid(
    path: Path, grid: Grid, rule: Callable[[str], RateRule], overrides: Sequence[str] = (), axes: Sequence[Axis] = ()
) -> list[PlannedRun]:
    """The runs of a grid over the recipe at `path`, the cheapest first. `rule` gives that of a learner.

    InputError for an unknown learner, sizes that do not divide, or a recipe that is invalid.
    """
    if bool(grid.tokens) == bool(grid.flops):
        raise InputError("give either tokens or FLOPs of the runs", "as --tokens 1M,2M, or --flops 1e13,3e13")
    base = Recipe.load(path, overrides)
    runs = []
    sizes = itertools.product(grid.learners or [""], grid.widths, grid.blocks)
    for learner, width, blocks in sizes:
        block = _learner_block(learner, width, grid.head_size) if learner else _scaled_block(base, width)
        lr = rule(learner or learner_of(base)).at(width)
        sized = [f"model.width={width}", f"model.blocks={blocks}", f"model.block={json.dumps(block)}"]
        sized += [f"train.lr={lr:g}"]
        name = f"{learner or base.name}-w{width}-b{blocks}"
        for tokens, label in _budgets(load_run(path, [*overrides, *sized], ()), grid):
            own = [*sized, f"train.budget={tokens}tokens"]
            for values in itertools.product(*(axis.values for axis in axes)):
                given = [f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]
                recipe = load_run(path, [*overrides, *own, *given], [axis.key for axis in axes])
                parts = [f"{axis.key.rpartition('.')[2]}={v}" for axis, v in zip(axes, values, strict=True)]
                runs.append(PlannedRun(",".join([f"{name}-{label}", *parts]), recipe, (*own, *given)))
    return sorted(check_runs(runs), key=cost)


def cost(run: PlannedRun) -> float:
    """The FLOPs of a run's training, as counted."""
    return 3 * account(run.recipe).flops * run.recipe.train.budget.amount


def learner_of(recipe: Recipe) -> str:
    """The name of what a recipe's blocks remember by: its learners without MLPs, joined by +."""
    learners = getattr(recipe.model, "learners", ())
    names = dict.fromkeys(spec.type for spec in learners if spec.type not in CHANNEL_MIXING)
    return "+".join(names) or "mlp"


def _budgets(recipe: Recipe, grid: Grid) -> list[tuple[int, str]]:
    """Tokens of each run of one size, in whole steps, with a label."""
    step = recipe.train.batch * recipe.data.sequence
    per_token = 3 * account(recipe).flops
    wanted = [(n, format_count(n)) for n in grid.tokens] or [
        (c / per_token, f"{format_count(c)}FLOPs") for c in grid.flops
    ]
    budgets = [(max(1, round(tokens / step)) * step, label) for tokens, label in wanted]
    if len({tokens for tokens, _ in budgets}) < len(budgets):
        raise InputError(f"two budgets are the same number of steps of {step:,} tokens", "move them apart")
    return budgets


def _learner_block(name: str, width: int, head_size: int) -> list[dict[str, Any]]:
    if name not in LAYERS:
        raise unknown("learner", name, LAYERS)
    fields = LAYERS[name].Config.model_fields
    entry: dict[str, Any] = {"type": name}
    if "heads" in fields and fields["heads"].default is not None:
        if width % head_size:
            raise InputError(f"width {width} does not split into heads of {head_size}", "change --head-size or --width")
        entry["heads"] = width // head_size
    elif "head_size" in fields:
        entry["head_size"] = head_size
    return [entry, {"type": "mlp"}]


def _scaled_block(recipe: Recipe, width: int) -> list[Any]:
    """The recipe's block at another width."""
    own = recipe.model.width

    def scaled(entry: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(entry)
        for key in SCALED:
            if isinstance(value := entry.get(key), int):
                if value * width % own:
                    raise InputError(
                        f"{entry['type']}.{key} {value} of width {own} is no whole number at width {width}",
                        "choose widths in its steps, or --learner",
                    )
                changed[key] = value * width // own
        return changed

    block: list[Any] = recipe.model.model_dump(mode="json")["block"]
    return [[scaled(each) for each in kind] if isinstance(kind, list) else scaled(kind) for kind in block]
