"""Points and trials of trained runs: run folders, and the folders of sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from synthe_core.errors import InputError
from synthe_core.recipe.accounting import account
from synthe_core.recipe.schema import Recipe
from synthe_core.scaling.grid import learner_of
from synthe_core.scaling.points import Point
from synthe_core.scaling.rates import Trial
from synthe_core.storage.checkpoint import checkpoints
from synthe_core.sweep.folder import FINISHED, LOGS, MANIFEST, RECIPES, outcome, read_records

BESIDE_RUNS = (RECIPES, LOGS)


def run_folders(paths: Sequence[Path]) -> tuple[list[Path], int]:
    """The finished runs among `paths`, and how many runs are not finished.

    A sweep's folder stands for its runs. What else lies in a sweep's folder, as a shell's `runs/scale/*` names it, is
    left out. InputError for a path that is none of these.
    """
    runs: dict[Path, None] = {}
    unfinished = 0
    for path in paths:
        if (path / MANIFEST).is_file():
            for record in read_records(path):
                if record.status == FINISHED:
                    runs[path / record.name] = None
                else:
                    unfinished += 1
        elif path.is_dir() and checkpoints(path):
            if is_finished(path):
                runs[path] = None
            else:
                unfinished += 1
        elif (path.parent / MANIFEST).is_file() and (path.name in BESIDE_RUNS or not path.is_dir()):
            continue
        elif path.is_dir() and (path / "recipe.yaml").is_file():
            unfinished += 1
        else:
            raise InputError(f"{path} is neither a run nor a sweep", "name folders under runs/, or a CSV table")
    return list(runs), unfinished


def is_finished(run: Path) -> bool:
    """Whether the newest checkpoint of a run is that of its whole budget."""
    records = {record.name: record for record in read_records(run.parent)} if (run.parent / MANIFEST).is_file() else {}
    if run.name in records:
        return records[run.name].status == FINISHED
    budget, values = Recipe.load(run).train.budget, outcome(run)
    spent = {"tokens": values["tokens"], "steps": values["steps"], "seconds": values["seconds"]}
    return budget.unit not in ("tokens", "steps") or spent[budget.unit] >= budget.amount


def read_points(runs: Sequence[Path]) -> list[Point]:
    """The point of each run. FLOPs are those that are counted for its model, forward and backward.

    InputError where runs differ in their vocabulary, data or sequence, since their losses cannot be compared.
    """
    points, first = [], None
    for run in runs:
        recipe, values = Recipe.load(run), outcome(run)
        if "loss" not in values:
            raise InputError(f"{run} has no validation loss", "leave it out")
        counts = account(recipe)
        text = (counts.vocabulary, recipe.data.sources, recipe.data.sequence, recipe.data.validation)
        first = first or (run, text)
        if text != first[1]:
            raise InputError(
                f"{run} has other data than {first[0]}: losses of them do not compare", "fit runs of one text at a time"
            )
        flops = 3 * counts.flops * values["tokens"]
        points.append(
            Point(values["parameters"], values["tokens"], values["loss"], flops, learner_of(recipe), run.name)
        )
    return points


def read_trials(sweep: Path) -> list[Trial]:
    """The finished runs of a sweep over learning rates and widths."""
    return list(_trials(run_folders([sweep])[0]))


def _trials(runs: Sequence[Path]) -> Iterator[Trial]:
    for run in runs:
        recipe, values = Recipe.load(run), outcome(run)
        if "loss" in values:
            yield Trial(learner_of(recipe), recipe.model.width, recipe.train.lr, values["loss"])
