"""Trials that differ by nothing but their seed as one summary, and the summaries of one task as one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, NamedTuple

Record = dict[str, Any]
"""What `trial.run` ends with, and what trial-DIGEST.json holds."""


class Point(NamedTuple):
    """Mean and deviation of accuracy over seeds, where `value` is that of the task's axis or of a slice."""

    value: Any
    mean: float
    std: float | None


@dataclass(frozen=True)
class Summary:
    """One model with one setting on one task. `std` is the sample's deviation over seeds, None where there is one.

    `differs` are the model's keys that tell it from others of the same label, `swept` those settings of the training
    that are not the same in all summaries of the task. `state_bytes` is one sequence's, at the longest tested length.
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
        """The label, with what tells it from others of that label: `delta width=128`."""
        return " ".join([self.label, *(f"{key}={plain(value)}" for key, value in self.differs.items())])

    @property
    def family(self) -> str:
        """The name without the width: the same model at several widths is one line of accuracy against state."""
        return " ".join([self.label, *(f"{k}={plain(v)}" for k, v in self.differs.items() if k != "width")])

    @property
    def bench(self) -> str:
        """Summaries that may be compared: the task, its settings and the preset."""
        return _key([self.task, self.settings, self.preset])


class Bench(NamedTuple):
    """The summaries of one task with its settings, the best first, and what its tables have in common."""

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
    swept = _between(groups, ("task", "settings", "preset"), _training, _varying)
    differs = _between(groups, ("label",), lambda trial: _flat(trial["model"]), _telling)
    return [_summary(g, d, s) for g, d, s in zip(groups, differs, swept, strict=True)]


def best(found: Iterable[Summary]) -> list[Summary]:
    """For each task and model the summary with the highest mean over the settings of its training, in given order."""
    chosen: dict[tuple[str, str], Summary] = {}
    for each in found:
        key = (each.bench, each.name)
        if key not in chosen or each.mean > chosen[key].mean:
            chosen[key] = each
    return list(chosen.values())


def benches(found: Iterable[Summary]) -> list[Bench]:
    """The tasks in alphabetical order."""
    grouped: dict[str, list[Summary]] = {}
    for each in found:
        grouped.setdefault(each.bench, []).append(each)
    made = []
    for rows in grouped.values():
        first = rows[0]
        made.append(
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
    return sorted(made, key=lambda bench: (bench.task, bench.preset))


class Overview(NamedTuple):
    """Best accuracies of all tasks as a table: lines of (name, cells), and each task's chance."""

    columns: list[str]
    lines: list[tuple[str, list[Summary | None]]]
    chance: list[float]
    models_run_down: bool


def overview(found: list[Bench]) -> Overview:
    """The longer of models and tasks runs down."""
    alike = len({bench.preset for bench in found}) == 1
    titles = [bench.task if alike else bench.title for bench in found]
    cells = {(row.name, title): row for bench, title in zip(found, titles, strict=True) for row in bench.best}
    first = {row.name: row for row in cells.values()}
    names = sorted(first, key=lambda name: (first[name].label, first[name].width, name))
    chance = [bench.chance for bench in found]
    if len(names) >= len(titles):
        return Overview(
            titles, [(name, [cells.get((name, title)) for title in titles]) for name in names], chance, True
        )
    return Overview(names, [(title, [cells.get((name, title)) for name in names]) for title in titles], chance, False)


COSTS = ["state bytes", "parameters", "steps", "seconds", "ended"]


def overview_text(found: list[Bench]) -> tuple[list[str], list[list[str]]]:
    """`overview` in words, with the chance of each task: columns, and the cells of every line."""
    table = overview(found)
    chances = [chance_text(chance) for chance in table.chance]
    lines = [[name, *(percent(cell.mean, cell.std) if cell else "-" for cell in cells)] for name, cells in table.lines]
    if table.models_run_down:
        return ["", *table.columns], [["chance", *chances], *lines]
    return ["", "chance", *table.columns], [[line[0], c, *line[1:]] for line, c in zip(lines, chances, strict=True)]


def heads(bench: Bench) -> list[str]:
    """The columns of `scores`."""
    many = ["seeds"] if _repeated(bench) else []
    return ["model", *bench.swept, "accuracy", *(f"{bench.axis} {plain(value)}" for value in bench.values), *many]


def scores(bench: Bench, row: Summary) -> list[str]:
    """What a summary is and how good, as a line of the task's table."""
    by_value = {point.value: point for point in row.by_axis}
    return [
        row.name,
        *(plain(row.swept[key]) for key in bench.swept),
        percent(row.mean, row.std),
        *(percent(by_value[value].mean) if value in by_value else "-" for value in bench.values),
        *([str(row.seeds)] if _repeated(bench) else []),
    ]


def costs(row: Summary) -> list[str]:
    """The columns of COSTS, exact."""
    return [f"{row.state_bytes:,}", f"{row.parameters:,}", f"{row.steps:,.0f}", f"{row.seconds:,.1f}", row.ended]


def _repeated(bench: Bench) -> bool:
    return any(row.seeds > 1 for row in bench.rows)


def percent(mean: float, std: float | None = None) -> str:
    """0.9931 -> 99.3%; with a deviation 99.3% ± 0.4."""
    return f"{mean:.1%}" + (f" ± {100 * std:.1f}" if std is not None else "")


def chance_text(chance: float) -> str:
    """Two digits, however rare: 0.024%."""
    return f"{100 * chance:.2g}%" if chance < 0.995 else f"{chance:.0%}"


def early_stop(records: Iterable[Record]) -> str:
    """What "solved" means, said beside every table."""
    levels = sorted({record["trial"]["stop_at"] for record in records})
    return f"A trial is solved, and stops, once it tests at {' or '.join(f'{level:.4g}' for level in levels)} or above."


def plain(value: Any) -> str:
    """A setting as a person would type it."""
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
    """Over seeds; shares of one run that have the same value are one, by their mean."""
    by_value: dict[Any, list[float]] = {}
    for run in runs:
        once: dict[Any, list[float]] = {}
        for value, accuracy in run:
            once.setdefault(value, []).append(accuracy)
        for value, accuracies in once.items():
            by_value.setdefault(value, []).append(fmean(accuracies))
    return [Point(value, *_spread(by_value[value])) for value in sorted(by_value, key=_order)]


def _spread(values: list[float]) -> tuple[float, float | None]:
    return fmean(values), stdev(values) if len(values) > 1 else None


def _slice(entry: dict[str, Any]) -> tuple[str, Any]:
    """`{"distance": 4, "accuracy": 0.9}` as ("distance", 4)."""
    ((name, value),) = _without(entry, "accuracy").items()
    return name, value


def _between(
    groups: list[list[Record]],
    alike: tuple[str, ...],
    flat: Callable[[dict[str, Any]], dict[str, Any]],
    choose: Callable[[list[dict[str, Any]]], dict[str, str]],
) -> list[dict[str, Any]]:
    """For each group the keys of `flat` that are chosen among all groups which are `alike`, with its own values."""
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


def _telling(members: list[dict[str, Any]]) -> dict[str, str]:
    """{short name: key}: the outermost keys first, and none that tells apart no more than those before it."""
    chosen: list[str] = []
    apart = 1
    for key in sorted({key for member in members for key in member}, key=lambda key: (key.count("."), key)):
        count = len({_key([member.get(each) for each in (*chosen, key)]) for member in members})
        if count > apart:
            chosen, apart = [*chosen, key], count
    short = [key.rpartition(".")[2] for key in chosen]
    return {key if short.count(name) > 1 else name: key for name, key in zip(short, chosen, strict=True)}


def _training(trial: dict[str, Any]) -> dict[str, Any]:
    known = ("task", "settings", "preset", "model", "label", "seed")
    return {key: value for key, value in trial.items() if key not in known}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """{"block": [{"heads": 2}]} as {"block.0.heads": 2}; lists of numbers stay whole."""
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
    """Numbers by size, then words."""
    return (False, value) if isinstance(value, (int, float)) else (True, str(value))
