"""Summaries of trials that differ in their seed only, and tables of the summaries of each task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, NamedTuple

Record = dict[str, Any]
"""The Result of `trial.run`, and the content of trial-DIGEST.json."""


class Point(NamedTuple):
    """Mean and standard deviation of accuracy over seeds at one `value` of the task's axis or of a slice."""

    value: Any
    mean: float
    std: float | None


@dataclass(frozen=True)
class Summary:
    """One model with one training setting on one task.

    std:         the sample's standard deviation over seeds; None for one seed.
    differs:     the model's keys that differ from other models of the same label.
    swept:       the training settings that differ between the summaries of the task.
    state_bytes: of one sequence at the longest tested length.
    """

    task: str
    preset: str
    settings: dict[str, Any]
    label: str
    width: int
    axis: str
    seeds: int
    mean: float
    std: float | None
    by_axis: list[Point]
    slices: dict[str, list[Point]]
    chance: float
    state_bytes: int
    parameters: int
    steps: float
    seconds: float
    ended: str
    digests: list[str]
    differs: dict[str, Any] = field(default_factory=dict)
    swept: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The label, and the keys that differ from other models of that label: `delta width=128`."""
        return " ".join([self.label, *(f"{key}={plain(value)}" for key, value in self.differs.items())])

    @property
    def family(self) -> str:
        """The name without the width: a chart joins the same model at several widths."""
        return " ".join([self.label, *(f"{k}={plain(v)}" for k, v in self.differs.items() if k != "width")])

    @property
    def bench(self) -> str:
        """The key of comparable summaries: the task, its settings and the preset."""
        return _key([self.task, self.settings, self.preset])


class Bench(NamedTuple):
    """The summaries of one task and its settings, the best first."""

    task: str
    preset: str
    axis: str
    chance: float
    values: list[Any]
    swept: list[str]
    rows: list[Summary]

    @property
    def title(self) -> str:
        return f"{self.task}, {self.preset} preset"

    @property
    def best(self) -> list[Summary]:
        return best(self.rows)


def summaries(records: Iterable[Record]) -> list[Summary]:
    """One Summary for each task, model and setting of the training."""
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(_key(_without(record["trial"], "seed")), []).append(record)
    groups = list(grouped.values())
    swept = _differing_keys(groups, ("task", "settings", "preset"), _training_settings, _varying)
    differs = _differing_keys(groups, ("label",), lambda trial: _flat(trial["model"]), _distinguishing)
    return [_summary(g, d, s) for g, d, s in zip(groups, differs, swept, strict=True)]


def best(summaries: Iterable[Summary]) -> list[Summary]:
    """For each task and model, in order, the summary with the highest mean over its training settings."""
    by_model: dict[tuple[str, str], Summary] = {}
    for each in summaries:
        key = (each.bench, each.name)
        if key not in by_model or each.mean > by_model[key].mean:
            by_model[key] = each
    return list(by_model.values())


def benches(summaries: Iterable[Summary]) -> list[Bench]:
    """The tasks in alphabetical order."""
    grouped: dict[str, list[Summary]] = {}
    for each in summaries:
        grouped.setdefault(each.bench, []).append(each)
    tables = []
    for rows in grouped.values():
        first = rows[0]
        tables.append(
            Bench(
                task=" ".join([first.task, *(f"{key}={plain(value)}" for key, value in first.settings.items())]),
                preset=first.preset,
                axis=first.axis,
                chance=first.chance,
                values=sorted({point.value for row in rows for point in row.by_axis}, key=_order),
                swept=list(dict.fromkeys(key for row in rows for key in row.swept)),
                rows=sorted(rows, key=lambda row: (-row.mean, row.name)),
            )
        )
    return sorted(tables, key=lambda bench: (bench.task, bench.preset))


class Overview(NamedTuple):
    """The best accuracies of all tasks as a table: lines of (name, cells), and each task's chance."""

    columns: list[str]
    lines: list[tuple[str, list[Summary | None]]]
    chance: list[float]
    models_as_rows: bool


def overview(benches: list[Bench]) -> Overview:
    """Models as rows and tasks as columns, or the other way round: the longer of the two as rows."""
    one_preset = len({bench.preset for bench in benches}) == 1
    titles = [bench.task if one_preset else bench.title for bench in benches]
    cells = {(row.name, title): row for bench, title in zip(benches, titles, strict=True) for row in bench.best}
    first = {row.name: row for row in cells.values()}
    names = sorted(first, key=lambda name: (first[name].label, first[name].width, name))
    chance = [bench.chance for bench in benches]
    if len(names) >= len(titles):
        return Overview(
            titles, [(name, [cells.get((name, title)) for title in titles]) for name in names], chance, True
        )
    return Overview(names, [(title, [cells.get((name, title)) for name in names]) for title in titles], chance, False)


COST_COLUMNS = ["state bytes", "parameters", "steps", "seconds", "ended"]


def overview_text(benches: list[Bench]) -> tuple[list[str], list[list[str]]]:
    """`overview` as text, with the chance of each task: columns, and the cells of every line."""
    table = overview(benches)
    chances = [chance_text(chance) for chance in table.chance]
    lines = [[name, *(percent(cell.mean, cell.std) if cell else "-" for cell in cells)] for name, cells in table.lines]
    if table.models_as_rows:
        return ["", *table.columns], [["chance", *chances], *lines]
    return ["", "chance", *table.columns], [[line[0], c, *line[1:]] for line, c in zip(lines, chances, strict=True)]


def score_columns(bench: Bench) -> list[str]:
    """The columns of `score_cells`."""
    seeds = ["seeds"] if _repeated(bench) else []
    return ["model", *bench.swept, "accuracy", *(f"{bench.axis} {plain(value)}" for value in bench.values), *seeds]


def score_cells(bench: Bench, row: Summary) -> list[str]:
    """A summary as a line of the task's table: model, settings, accuracies."""
    by_value = {point.value: point for point in row.by_axis}
    return [
        row.name,
        *(plain(row.swept[key]) for key in bench.swept),
        percent(row.mean, row.std),
        *(percent(by_value[value].mean) if value in by_value else "-" for value in bench.values),
        *([str(row.seeds)] if _repeated(bench) else []),
    ]


def cost_cells(row: Summary) -> list[str]:
    """The columns of COST_COLUMNS, exact."""
    return [f"{row.state_bytes:,}", f"{row.parameters:,}", f"{row.steps:,.0f}", f"{row.seconds:,.1f}", row.ended]


def _repeated(bench: Bench) -> bool:
    return any(row.seeds > 1 for row in bench.rows)


def percent(mean: float, std: float | None = None) -> str:
    """0.9931 -> 99.3%; with a deviation 99.3% ± 0.4."""
    return f"{mean:.1%}" + (f" ± {100 * std:.1f}" if std is not None else "")


def chance_text(chance: float) -> str:
    """Two significant digits: 0.024%."""
    return f"{100 * chance:.2g}%" if chance < 0.995 else f"{chance:.0%}"


def stop_note(records: Iterable[Record]) -> str:
    """What "solved" means, for every table."""
    levels = sorted({record["trial"]["stop_at"] for record in records})
    return f"A trial is solved, and stops, once it tests at {' or '.join(f'{level:.4g}' for level in levels)} or above."


def plain(value: Any) -> str:
    """A setting as it is written on the command line."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"[{','.join(map(plain, value))}]" if isinstance(value, list) else str(value)


def _summary(group: list[Record], differs: dict[str, Any], swept: dict[str, Any]) -> Summary:
    first, trial = group[0], group[0]["trial"]
    axis = first["axis"]
    mean, std = _spread([record["accuracy"] for record in group])
    slices = [(_slice(each), each["accuracy"]) for record in group for each in record["slices"]]
    solved = sum(record["ended"] == "solved" for record in group)
    return Summary(
        task=trial["task"],
        preset=trial["preset"],
        settings=trial["settings"],
        label=" ".join(trial["label"].split()) or "model",
        width=trial["model"]["width"],
        axis=axis,
        seeds=len(group),
        mean=mean,
        std=std,
        by_axis=_points(
            [[(share["settings"][axis], share["accuracy"]) for share in record["shares"]] for record in group]
        ),
        slices={
            name: _points(
                [
                    [(_slice(each)[1], each["accuracy"]) for each in record["slices"] if _slice(each)[0] == name]
                    for record in group
                ]
            )
            for name in dict.fromkeys(name for (name, _), _ in slices)
        },
        chance=first["chance"],
        state_bytes=max(record["state_bytes"] for record in group),
        parameters=first["parameters"],
        steps=fmean(record["steps"] for record in group),
        seconds=fmean(record["seconds"] for record in group),
        ended=group[0]["ended"] if solved in (0, len(group)) else f"solved {solved}/{len(group)}",
        digests=[record["digest"] for record in group],
        differs=differs,
        swept=swept,
    )


def _points(runs: list[list[tuple[Any, float]]]) -> list[Point]:
    """Over seeds. Shares of one run with the same value count once, by their mean."""
    by_value: dict[Any, list[float]] = {}
    for run in runs:
        in_run: dict[Any, list[float]] = {}
        for value, accuracy in run:
            in_run.setdefault(value, []).append(accuracy)
        for value, accuracies in in_run.items():
            by_value.setdefault(value, []).append(fmean(accuracies))
    return [Point(value, *_spread(by_value[value])) for value in sorted(by_value, key=_order)]


def _spread(values: list[float]) -> tuple[float, float | None]:
    return fmean(values), stdev(values) if len(values) > 1 else None


def _slice(entry: dict[str, Any]) -> tuple[str, Any]:
    """`{"distance": 4, "accuracy": 0.9}` as ("distance", 4)."""
    ((name, value),) = _without(entry, "accuracy").items()
    return name, value


def _differing_keys(
    groups: list[list[Record]],
    alike: tuple[str, ...],
    flat: Callable[[dict[str, Any]], dict[str, Any]],
    choose: Callable[[list[dict[str, Any]]], dict[str, str]],
) -> list[dict[str, Any]]:
    """For each group its values of the keys that `choose` selects among all groups with the same `alike` values."""
    trials = [group[0]["trial"] for group in groups]
    sets: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        sets.setdefault(_key([trial[key] for key in alike]), []).append(flat(trial))
    chosen = {key: choose(members) for key, members in sets.items()}
    return [
        {short: flat(trial).get(key) for short, key in chosen[_key([trial[name] for name in alike])].items()}
        for trial in trials
    ]


def _varying(members: list[dict[str, Any]]) -> dict[str, str]:
    """The keys whose values are not all the same."""
    return {key: key for key in members[0] if len({_key(member.get(key)) for member in members}) > 1}


def _distinguishing(members: list[dict[str, Any]]) -> dict[str, str]:
    """{short name: key}: the outermost keys first, without keys that distinguish no more than those before them."""
    chosen: list[str] = []
    distinct = 1
    for key in sorted({key for member in members for key in member}, key=lambda key: (key.count("."), key)):
        count = len({_key([member.get(each) for each in (*chosen, key)]) for member in members})
        if count > distinct:
            chosen, distinct = [*chosen, key], count
    short = [key.rpartition(".")[2] for key in chosen]
    return {key if short.count(name) > 1 else name: key for name, key in zip(short, chosen, strict=True)}


def _training_settings(trial: dict[str, Any]) -> dict[str, Any]:
    known = ("task", "settings", "preset", "model", "label", "seed")
    return {key: value for key, value in trial.items() if key not in known}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """{"block": [{"heads": 2}]} as {"block.0.heads": 2}; lists of numbers are not flattened."""
    if isinstance(value, dict):
        inner = [(key, each) for key, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, (dict, list)) for each in value):
        inner = [(str(i), each) for i, each in enumerate(value)]
    else:
        return {path: value}
    return {k: v for key, each in inner for k, v in _flat(each, f"{path}.{key}" if path else key).items()}


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _order(value: Any) -> tuple[bool, Any]:
    """A sort key: numbers by size, then texts."""
    return (False, value) if isinstance(value, (int, float)) else (True, str(value))
