"""`bench language`: recipes of equal size learn one text, each from several seeds; bits per byte and bytes of state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from threading import Event as Stop
from typing import Any, NamedTuple

from synthe_core.charts.chart import Axis as ChartAxis
from synthe_core.charts.chart import Chart, Series
from synthe_core.charts.svg import svg
from synthe_core.events import Event, Notice, Result
from synthe_core.recipe.accounting import account
from synthe_core.storage.atomic import write_file
from synthe_core.sweep.folder import FINISHED
from synthe_core.sweep.grid import Axis, PlannedRun, plan_runs
from synthe_core.sweep.run import sweep

PICTURE = "loss-by-state.svg"
EQUAL = 0.02  # of the median number of parameters, by which recipes of equal size may differ
FEWEST = 2  # seeds from which a deviation is known


class Model(NamedTuple):
    """A recipe's model: its parameters, and the bytes of one sequence's state after a training sequence."""

    parameters: int
    state_bytes: int
    sequence: int


@dataclass(frozen=True)
class LanguageScore:
    """Bits per byte of held-out text, mean and sample deviation over `seeds` runs; the deviation of one run is None."""

    recipe: str
    parameters: int
    state_bytes: int
    seeds: int
    tokens: int
    bits_per_byte: float
    std: float | None


def plan(
    recipes: Sequence[tuple[str, Path]], *, seeds: int, tokens: str, overrides: Sequence[str] = ()
) -> dict[str, list[PlannedRun]]:
    """The runs of every recipe, a (name, path): one a seed, for `tokens` tokens, validated once at the end."""
    axis = Axis("seed", tuple(str(seed) for seed in range(seeds)))
    runs = plan_runs(recipes, [axis], [f"train.budget={tokens}tokens", "train.validations=1", *overrides])
    return {name: runs[i * seeds : (i + 1) * seeds] for i, (name, _) in enumerate(recipes)}


def language(
    runs: Mapping[str, Sequence[PlannedRun]],
    *,
    out: Path,
    jobs: int | None = None,
    launcher: str = "local",
    stop: Stop | None = None,
) -> Iterator[Event]:
    """Trains the runs, as `sweep` does, and yields its events; the last is a Result with a score of each recipe, the
    best first, and the picture of loss against state as its path. A later call goes on with what is left."""
    models = {name: _model(own[0]) for name, own in runs.items()}
    if different := _unequal(models):
        yield Notice(f"not of equal size: {different}", "warning")
    records: Sequence[Mapping[str, Any]] = ()
    every = [run for own in runs.values() for run in own]
    for event in sweep(every, out=out, jobs=jobs, launcher=launcher, metric="bits_per_byte", stop=stop):
        if isinstance(event, Result):
            records = event.values["runs"]  # type: ignore[assignment]
        else:
            yield event
    rows = scores(runs, records, models)
    path = None
    if rows:
        path = out / PICTURE
        write_file(path, svg([loss_by_state(rows, models)]))
    failed = [record["name"] for record in records if record["status"] != FINISHED]
    yield Result({"scores": [asdict(each) for each in rows], "failed": failed}, path)


def scores(
    runs: Mapping[str, Sequence[PlannedRun]], records: Sequence[Mapping[str, Any]], models: Mapping[str, Model]
) -> list[LanguageScore]:
    """The scores of the recipes with a finished run, the best first."""
    finished = {record["name"]: record["values"] for record in records if record["status"] == FINISHED}
    rows = []
    for name, own in runs.items():
        values = [finished[run.name] for run in own if run.name in finished]
        if not values:
            continue
        bits = [float(each["bits_per_byte"]) for each in values]
        deviation = stdev(bits) if len(bits) >= FEWEST else None
        model, tokens = models[name], int(values[0]["tokens"])
        rows.append(LanguageScore(name, model.parameters, model.state_bytes, len(bits), tokens, fmean(bits), deviation))
    return sorted(rows, key=lambda each: each.bits_per_byte)


def loss_by_state(rows: Sequence[LanguageScore], models: Mapping[str, Model]) -> Chart:
    """Bits per byte against bytes of state; a line joins a mean's deviation on both sides."""
    lengths = sorted({model.sequence for model in models.values()})
    chart = Chart(
        "bits per byte against the state of one sequence",
        ChartAxis(f"bytes of state after {lengths[0]:,} tokens", True),
        ChartAxis("bits per byte"),
    )
    for style, row in enumerate(rows):
        at = max(row.state_bytes, 1)
        chart.series.append(Series(row.recipe, [(at, row.bits_per_byte)], "marks", style))
        if row.std:
            ends = [(at, row.bits_per_byte - row.std), (at, row.bits_per_byte + row.std)]
            chart.series.append(Series("", ends, "line", style))
    return chart


def _model(run: PlannedRun) -> Model:
    counts = account(run.recipe)
    return Model(counts.parameters, counts.state_bytes[counts.sequence], counts.sequence)


def _unequal(models: Mapping[str, Model]) -> str:
    """The recipes whose parameters differ from the median's by more than 2%, in words."""
    sizes = sorted(model.parameters for model in models.values())
    median = sizes[len(sizes) // 2]
    return ", ".join(
        f"{name} has {model.parameters:,} parameters ({model.parameters / median - 1:+.0%})"
        for name, model in models.items()
        if abs(model.parameters / median - 1) > EQUAL
    )
