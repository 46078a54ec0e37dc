"""`synthe bench report` and `synthe bench list`: reports of finished trials, and the tasks."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from synthe_cli import figures
from synthe_cli.options import JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_core.events import Result
from synthe_core.units import format_count

REPORT_EXAMPLES = """\
synthe bench report runs/bench/mqar                     tables, and report.html, .csv and .md
synthe bench report runs/bench/* --out report           all tasks on one page
synthe bench report runs/bench --json | jq .values.summaries"""

LIST_EXAMPLES = """\
synthe bench list                                       one line per task
synthe bench list mqar                                  its description, keys and preset sizes
synthe bench list --json | jq .settings"""


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders with finished trials.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to. Default: the first DIR.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write report.html, report.csv and report.md of all trials in the folders, and print their tables.

    The page has tables, accuracy along each task's axis, and accuracy by state size. It works offline.
    """
    from synthe_cli.bench_table import show
    from synthe_core.benchmarks.synthetic import report as reports

    records = reports.load(folders)
    summaries = reports.summaries(records)
    first = folders[0] if folders[0].is_dir() else folders[0].parent
    page, *_ = reports.write(records, out or first)
    if not as_json:
        show(summaries)
        print()
    values: dict[str, object] = {"summaries": [asdict(each) for each in summaries]} if as_json else {}
    with choose_renderer(as_json) as shown:
        shown.result(Result(values, page))


def list_tasks(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Only this task, with its keys.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the tasks of `synthe bench TASK`. With TASK, show its keys and preset sizes."""
    from synthe_core.tasks import TASKS

    names = [task] if task else list(TASKS)
    if as_json:
        for name in names:
            print(json.dumps(_details(name, TASKS[name])))
    elif task:
        print(_description(TASKS[task]))
    else:
        width = max(map(len, names))
        print("\n".join(f"{name:<{width}}  {_about(TASKS[name])}" for name in names))


def _about(task: Any) -> str:
    """The first line of the task's docstring, or of its module's for our own tasks: a file has one task."""
    own = task.__module__.startswith("synthe_core.")
    text = (sys.modules[task.__module__].__doc__ if own else inspect.getdoc(task)) or ""
    return text.strip().partition("\n")[0]


def _settings(task: Any) -> dict[str, dict[str, Any]]:
    """The JSON Schema of every key."""
    properties = task.Config.model_json_schema()["properties"]
    return {key: schema for key, schema in properties.items() if key != "type"}


def _details(name: str, task: Any) -> dict[str, Any]:
    text = inspect.getdoc(task) or ""
    return {"task": name, "about": _about(task), "text": text, "axis": task.axis, "settings": _settings(task)}


def _description(task: Any) -> str:
    rows = []
    for key, schema in _settings(task).items():
        default = json.dumps(schema["default"]) if "default" in schema else "required"
        choices = " or ".join(schema.get("enum", []))
        rows.append([key, default, schema.get("description") or choices])
    parts = [_about(task), inspect.getdoc(task) or "", figures.table(["key", "default", ""], rows, left=3)]
    return "\n\n".join([*parts, "\n".join(_preset(task, each) for each in _presets())])


def _presets() -> tuple[str, ...]:
    from synthe_core.tasks.task import PresetName

    return get_args(PresetName)


def _preset(task: Any, name: str) -> str:
    preset = task.preset(name)
    trained, tested = (_sizes(task.axis, shares) for shares in (preset.train, preset.test))
    return f"{name:<9} trains on {trained}; tests {tested}"


def _sizes(axis: str, shares: list[Any]) -> str:
    values = list(dict.fromkeys(getattr(share.config, axis) for share in shares))
    return f"{axis} {', '.join(map(str, values))} ({format_count(sum(share.examples for share in shares))} sequences)"
