"""The runs of a sweep: the recipes, and every combination of the values that their keys take."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthe_core.errors import InputError, SyntheError
from synthe_core.recipe.accounting import vocabulary_of
from synthe_core.recipe.schema import Recipe

MAX_RUNS = 10_000
MAX_NAME = 100  # characters of a run's folder
OPENING, CLOSING, QUOTES = "[{(", "]})", "\"'"
_UNSAFE = re.compile(r"[^A-Za-z0-9._=+,-]+")


@dataclass(frozen=True)
class Axis:
    """A key of the recipe, and the values it takes, as they are written."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One run: the name of its folder, its resolved recipe, and the assignments that made it."""

    name: str
    recipe: Recipe
    assignments: tuple[str, ...] = ()


def parse_axis(text: str) -> Axis:
    """`train.lr=1e-3,2e-3` as an Axis; commas in brackets or quotes do not split. InputError if it is none."""
    key, equals, rest = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--over {text}: expected KEY=VALUE,VALUE", "for example --over train.lr=1e-3,2e-3")
    values = tuple(each.strip() for each in _split(rest))
    if not all(values):
        raise InputError(f"--over {text}: a value is empty", "values are separated by single commas")
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise InputError(f"--over {key}: {twice[0]} is given twice")
    return Axis(key, values)


def _split(text: str) -> list[str]:
    """The pieces between commas that stand in no bracket and no quotes."""
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        else:
            depth += (letter in OPENING) - (letter in CLOSING)
        if letter == "," and depth == 0 and not quote:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces


def plan_runs(
    recipes: Sequence[tuple[str, Path]], axes: Sequence[Axis], overrides: Sequence[str] = ()
) -> list[PlannedRun]:
    """Every recipe, a (name, path), with every combination of the axes' values; `overrides` are of all runs.

    Each is loaded and its model counted, so that InputError names a bad key or an impossible size before anything runs.
    """
    keys = [axis.key for axis in axes]
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise InputError(f"--over {twice[0]} is given twice", "give all of its values at once, with commas")
    fixed = {each.partition("=")[0].strip() for each in overrides}
    if both := sorted(fixed & set(keys)):
        raise InputError(f"{both[0]} is given by --set and by --over", "leave out one of them")
    size = len(recipes)
    for axis in axes:
        size *= len(axis.values)
    if size > MAX_RUNS:
        raise InputError(f"the grid has {size:,} runs", f"a sweep has {MAX_RUNS:,} at most")
    for _, path in recipes:
        Recipe.load(path, overrides)  # its own errors first, without the axes
    short = _short_keys(keys)
    runs = []
    for (label, path), values in itertools.product(recipes, itertools.product(*(axis.values for axis in axes))):
        given = tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True))
        recipe = load_run(path, [*overrides, *given], keys)
        parts = [f"{short[key]}={value}" for key, value in zip(keys, values, strict=True)]
        parts = [label, *parts] if len(recipes) > 1 or not parts else parts
        runs.append(PlannedRun(",".join(parts), recipe, given))
    return check_runs(runs)


def check_runs(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """The runs under names that are folders of their own. InputError where two runs have one recipe."""
    runs = list(runs)
    by_digest: dict[str, PlannedRun] = {}
    for run in runs:
        first = by_digest.setdefault(run.recipe.digest(), run)
        if first is not run:
            raise InputError(f"{first.name} and {run.name} are the same run", "values that are written in two ways")
    names = [_folder_name(run.name) for run in runs]
    counts = Counter(names)
    return [
        PlannedRun(name if counts[name] == 1 else f"{name}-{run.recipe.digest()[:6]}", run.recipe, run.assignments)
        for name, run in zip(names, runs, strict=True)
    ]


def load_run(path: Path, assignments: Sequence[str], swept: Sequence[str]) -> Recipe:
    """The recipe of a run, whose model is counted. InputError names the values of the keys `swept`."""
    values = {each.partition("=")[0]: each for each in assignments}
    given = ", ".join(values[key] for key in swept)
    try:
        recipe = Recipe.load(path, assignments)
        recipe.meta_model(vocabulary_of(recipe))
    except SyntheError as error:
        lines = error.lines
        for key in swept:  # the option that it came from
            lines = [line.replace(f"--set {key}", f"--over {values[key]}") for line in lines]
        lines = [line if "--over" in line or not given else f"--over {given}: {line}" for line in lines]
        raise InputError(lines, error.hint) from None
    return recipe


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key that is unique: `lr` of `train.lr`."""
    short: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [each for each in keys if each != key]
        short[key] = next(t for t in tails if t == key or not any(o == t or o.endswith(f".{t}") for o in others))
    return short


def _folder_name(name: str) -> str:
    name = _UNSAFE.sub("-", name).strip("-.") or "run"
    return name[:MAX_NAME]
