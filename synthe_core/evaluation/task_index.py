"""The harness's tasks by name. Listing them parses some ten thousand files, so the list is cached."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, SyntheError, closest
from synthe_core.hardware.probe import cache_dir
from synthe_core.storage.atomic import write_file

OWN = Path(__file__).parent / "tasks"
"""Tasks that synthe ships."""


def index() -> dict[str, dict[str, Any]]:
    """Every task, group and tag of the installed harness: {"kind", "path" below its tasks folder, "tags"}."""
    file = cache_dir() / "evaluation" / f"tasks-{version('lm-eval')}.json"
    try:
        tasks = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(tasks, dict):
            return tasks
    except (OSError, ValueError):
        pass
    from lm_eval.tasks import TaskManager

    root = _tasks_folder()
    tasks = {}
    for name, entry in TaskManager().task_index.items():
        path = None if entry.yaml_path is None else Path(entry.yaml_path).relative_to(root).as_posix()
        tasks[name] = {"kind": entry.kind.name, "path": path, "tags": sorted(entry.tags)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(tasks))
    except (OSError, SyntheError):
        pass  # without a cache it is only slower
    return tasks


def names(pattern: str | None) -> dict[str, dict[str, Any]]:
    """The tasks of the harness and of synthe whose name matches a pattern or contains `pattern`; None: all."""
    own = {path.stem: {"kind": "TASK", "path": path.name, "tags": []} for path in OWN.glob("*.yaml")}
    known = index() | own
    if pattern is None:
        chosen = sorted(known)
    elif any(c in pattern for c in "*?["):
        chosen = sorted(fnmatch.filter(known, pattern))
    else:
        chosen = sorted(name for name in known if pattern.lower() in name.lower())
    return {name: {**known[name], "kind": known[name]["kind"].lower().removeprefix("py_")} for name in chosen}


def task_manager(include: Sequence[Path], metadata: Mapping[str, Any], names: Sequence[str] = ("*",)) -> Any:
    """The harness's TaskManager of its own tasks, ours, and those in the folders of `include`, which take precedence.

    The harness's own are left out if all `names` are tasks of the others, or task files.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry, Kind, TaskIndex

    for folder in include:
        if not folder.is_dir():
            raise InputError(f"no such folder of tasks: {folder}", "--include-path names a folder with task YAML files")
    manager = TaskManager(include_path=[OWN, *include], include_defaults=False, metadata=dict(metadata))
    tasks = manager.task_index

    def is_single_task(name: str) -> bool:
        entry = tasks.get(name) or (TaskIndex.entry_from_path(_task_file(name)) if _is_file(name) else None)
        return entry is not None and entry.kind in (Kind.TASK, Kind.PY_TASK)

    if not all(is_single_task(name) for name in names):
        root = _tasks_folder()
        for name, entry in index().items():
            path = None if entry["path"] is None else root / entry["path"]
            tasks.setdefault(name, Entry(name, Kind[entry["kind"]], path, tags=set(entry["tags"])))
    return manager


def resolve(names: Iterable[str], known: Mapping[str, Any]) -> list[str]:
    """The harness's names for `names`: a task, the path of a YAML file, or all tasks that match a pattern."""
    specs: list[str] = []
    for name in names:
        if name in known:
            specs.append(name)
        elif _is_file(name):
            specs.append(str(_task_file(name)))
        elif matches := sorted(fnmatch.filter(known, name)):
            specs += [each for each in matches if known[each].kind.name != "TAG"]
        else:
            near = closest(name, known)
            raise InputError(
                f"unknown task '{name}'", f"did you mean '{near}'?" if near else "`synthe eval list` shows the tasks"
            )
    return list(dict.fromkeys(specs))


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _task_file(name: str) -> Path:
    """The path of a task's file. InputError if it does not exist or is not a task."""
    import yaml

    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"no such task file: {path}", "a task is a YAML file of lm-evaluation-harness, or a name")
    try:
        text = path.read_text(encoding="utf-8")
        keys = {event.value for event in yaml.parse(text) if isinstance(event, yaml.ScalarEvent)}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read: {' '.join(str(error).split())[:200]}", "a task is a YAML file"
        ) from None
    if not keys & {"task", "group", "class"}:
        raise InputError(f"{path} is no task: it names none", "a task's file has a key `task`, a group's a key `group`")
    return path


def _tasks_folder() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent
