"""The table of synthetic tasks, from their configurations and docstrings."""

from __future__ import annotations

import inspect
import sys
from typing import Any, get_args

from docs.generate.markdown import cell, prose, table
from docs.generate.schema import keys
from synthe_core.tasks import TASKS
from synthe_core.tasks.task import PresetName


def page() -> str:
    """tasks.md: one table of all, then a section for each with its keys and presets."""
    rows = [[f"[`{name}`](#{name})", cell(_line(TASKS[name])), f"`{TASKS[name].axis}`"] for name in TASKS]
    return "\n".join(
        [
            "# Tasks\n",
            "Every task of `synthe bench TASK`. Keys of a task are options of the command (`--pairs 8`) and "
            "`--set task.KEY=VALUE`. Chance is the accuracy of the best guess that ignores the text before it.\n",
            table(["task", "what it asks", "reported by"], rows),
            *(_section(name, TASKS[name]) for name in TASKS),
        ]
    )


def _line(task: Any) -> str:
    """The first docstring line of the module of the task."""
    return (inspect.getdoc(sys.modules[task.__module__]) or "").partition("\n")[0]


def _section(name: str, task: Any) -> str:
    rows = [_preset(task, preset) for preset in get_args(PresetName)]
    presets = table(["preset", f"trains on `{task.axis}`", "sequences", f"tests `{task.axis}`", "chance"], rows)
    settings = keys(task.Config.model_json_schema(), {}, without=("type",))
    return f"## {name}\n\n{cell(_line(task))}\n\n{prose(task)}\n{settings}\n{presets}"


def _preset(task: Any, name: str) -> list[str]:
    preset = task.preset(name)
    chances = [task(share.config).chance for share in preset.test]
    low, high = min(chances), max(chances)
    chance = f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"
    examples = sum(share.examples for share in preset.train)
    return [f"`{name}`", _values(task, preset.train), f"{examples:,}", _values(task, preset.test), chance]


def _values(task: Any, shares: Any) -> str:
    return ", ".join(dict.fromkeys(str(getattr(share.config, task.axis)) for share in shares))
