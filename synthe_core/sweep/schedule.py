"""How far a sweep is: the shares of its runs, weighted by what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from synthe_core.events import Event, Metric, Progress
from synthe_core.recipe.accounting import account
from synthe_core.recipe.schema import Recipe
from synthe_core.sweep.grid import PlannedRun


def run_costs(runs: Sequence[PlannedRun]) -> dict[str, float]:
    """The relative cost of each run: seconds of budgets of time, FLOPs of budgets in tokens or steps, 1 where mixed."""
    units = {run.recipe.train.budget.unit for run in runs}
    if units == {"seconds"}:
        return {run.name: run.recipe.train.budget.amount for run in runs}
    if units and units <= {"tokens", "steps"}:
        return {run.name: training_tokens(run.recipe) * account(run.recipe).flops for run in runs}
    return dict.fromkeys((run.name for run in runs), 1.0)


def training_tokens(recipe: Recipe) -> float:
    """The tokens of a budget in tokens or steps."""
    budget = recipe.train.budget
    return budget.amount * (recipe.train.batch * recipe.data.sequence if budget.unit == "steps" else 1)


class SweepProgress:
    """The share of a sweep that is done, and how long the rest takes at the pace of this session."""

    def __init__(self, costs: Mapping[str, float], finished: Sequence[str], now: float) -> None:
        self._costs, self._start = costs, now
        self._shares = {name: float(name in finished) for name in costs}
        self._first: dict[str, float] = {name: 1.0 for name in finished}  # a resumed run's share when it began here

    def see(self, name: str, event: Event) -> None:
        """Takes in what a run reports."""
        if isinstance(event, Progress) and event.total:
            self._set(name, event.done / event.total)
        elif isinstance(event, Metric) and "fraction" in event.values:
            self._set(name, event.values["fraction"])

    def end(self, name: str) -> None:
        self._first.setdefault(name, 0.0)
        self._shares[name] = 1.0

    def _set(self, name: str, share: float) -> None:
        self._first.setdefault(name, share)
        self._shares[name] = min(1.0, share)

    def event(self, ended: int, now: float) -> Progress:
        """The Progress of the sweep, in runs."""
        done = sum(self._costs[name] * (self._shares[name] - self._first.get(name, 0.0)) for name in self._costs)
        left = sum(self._costs[name] * (1 - share) for name, share in self._shares.items())
        seconds = (now - self._start) * left / done if done > 0 else None
        return Progress("sweep", ended, len(self._costs), "runs", seconds)
