"""What of a recipe fits into memory: the largest micro-batch, and what to change if not even one sequence fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from synthe_core.errors import WorkError
from synthe_core.profiling.footprint import Footprint
from synthe_core.recipe.schema import Recipe
from synthe_core.training.tuning import micro_batch_sizes
from synthe_core.units import format_size

MIN_LENGTH = 64  # tokens of a sequence worth training on

Estimator = Callable[[Recipe, int], Footprint]
"""The footprint of training a recipe with a micro-batch of that many rows."""


class Fit(NamedTuple):
    """A variant of a recipe that fits.

    changes:     key -> value, as for --set.
    rejected:    (variant, peak bytes) of those that do not fit.
    next_larger: rows and peak of the next larger micro-batch; None if the whole batch fits.
    """

    footprint: Footprint
    changes: dict[str, object]
    rejected: list[tuple[str, float]]
    next_larger: tuple[int, float] | None

    @property
    def flags(self) -> str:
        values = {True: "true", False: "false"}
        return " ".join(f"--set {key}={values.get(value, value)}" for key, value in self.changes.items())  # type: ignore[call-overload]


def fit(recipe: Recipe, available: float, estimate: Estimator) -> Fit:
    """The first of these that fits into `available` bytes: the recipe as it is; with recomputed activations; with Muon,
    whose state is half of AdamW's; with shorter sequences. Each with the largest micro-batch that fits.

    Raises WorkError if none fits.
    """
    rejected: list[tuple[str, float]] = []
    for changes, variant in _variants(recipe):
        sizes = micro_batch_sizes(variant.train.batch)
        smallest = estimate(variant, sizes[0])
        named = ", ".join(f"{key}={value}" for key, value in changes.items()) or "as it is"
        if smallest.peak > available:
            rejected.append((f"{named}, one sequence per pass", smallest.peak))
            continue
        best, larger = smallest, None
        for rows in sizes[1:]:
            footprint = estimate(variant, rows)
            if footprint.peak > available:
                larger = (rows, footprint.peak)
                break
            best = footprint
        return Fit(best, {"train.micro_batch": best.rows, **changes}, rejected, larger)
    least = min(peak for _, peak in rejected)
    raise WorkError(
        f"not even one sequence of {MIN_LENGTH} tokens fits: it takes {format_size(least)} of {format_size(available)}",
        "make the model smaller: fewer blocks, or a smaller width",
    )


def _variants(recipe: Recipe) -> Iterator[tuple[dict[str, object], Recipe]]:
    """The recipe, and variants that take less and less memory, with what each changes."""
    changes: dict[str, object] = {}

    def change(key: str, value: object) -> tuple[dict[str, object], Recipe]:
        nonlocal recipe
        changes[key] = value
        part, _, name = key.partition(".")
        inner = getattr(recipe, part).model_copy(update={name: value})
        recipe = recipe.model_copy(update={part: inner})
        return dict(changes), recipe

    yield {}, recipe
    if not recipe.runtime.recompute:
        yield change("runtime.recompute", True)
    if recipe.train.optimizer == "adamw":
        yield change("train.optimizer", "muon")
    while recipe.data.sequence // 2 >= MIN_LENGTH:
        yield change("data.sequence", recipe.data.sequence // 2)
