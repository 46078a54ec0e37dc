"""What of a recipe fits: the largest micro-batch, and what has to give way where not even one sequence does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from synthe_core.errors import WorkError
from synthe_core.profiling.footprint import Footprint
from synthe_core.recipe.schema import Recipe
from synthe_core.training.tuning import ladder
from synthe_core.units import format_size

SHORTEST = 64  # tokens of a sequence that are worth training on

Tell = Callable[[Recipe, int], Footprint]
"""The footprint of training a recipe with passes of so many rows."""


class Fit(NamedTuple):
    """What fits: the footprint, the keys of the recipe that say so, what else was tried, and the next larger size.

    given: key -> value, as for --set. tried: (what, peak bytes) of those that do not fit. next_larger: rows and peak of
    the next size of a pass, None where the whole batch fits.
    """

    footprint: Footprint
    given: dict[str, object]
    tried: list[tuple[str, float]]
    next_larger: tuple[int, float] | None

    @property
    def flags(self) -> str:
        values = {True: "true", False: "false"}
        return " ".join(f"--set {key}={values.get(value, value)}" for key, value in self.given.items())  # type: ignore[call-overload]


def fit(recipe: Recipe, room: float, tell: Tell) -> Fit:
    """The first of these that fits into `room` bytes: the recipe as it is; with activations computed again; with Muon,
    whose state is half of AdamW's; with shorter sequences. Of each, the largest part of the batch that fits at once.

    Raises WorkError where nothing does.
    """
    tried: list[tuple[str, float]] = []
    for given, changed in _easier(recipe):
        sizes = ladder(changed.train.batch)
        one = tell(changed, sizes[0])
        named = ", ".join(f"{key}={value}" for key, value in given.items()) or "as it is"
        if one.peak > room:
            tried.append((f"{named}, one sequence a pass", one.peak))
            continue
        best, larger = one, None
        for rows in sizes[1:]:
            found = tell(changed, rows)
            if found.peak > room:
                larger = (rows, found.peak)
                break
            best = found
        return Fit(best, {"train.micro_batch": best.rows, **given}, tried, larger)
    least = min(peak for _, peak in tried)
    raise WorkError(
        f"not even one sequence of {SHORTEST} tokens fits: it takes {format_size(least)} of {format_size(room)}",
        "make the model smaller: fewer blocks, or a smaller width",
    )


def _easier(recipe: Recipe) -> Iterator[tuple[dict[str, object], Recipe]]:
    """The recipe, and what takes less and less."""
    given: dict[str, object] = {}

    def change(key: str, value: object) -> tuple[dict[str, object], Recipe]:
        nonlocal recipe
        given[key] = value
        part, _, name = key.partition(".")
        inner = getattr(recipe, part).model_copy(update={name: value})
        recipe = recipe.model_copy(update={part: inner})
        return dict(given), recipe

    yield {}, recipe
    if not recipe.runtime.recompute:
        yield change("runtime.recompute", True)
    if recipe.train.optimizer == "adamw":
        yield change("train.optimizer", "muon")
    while recipe.data.sequence // 2 >= SHORTEST:
        yield change("data.sequence", recipe.data.sequence // 2)
