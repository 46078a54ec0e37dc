"""The harness's tasks by name. Finding them means parsing some ten thousand files, so what was found is remembered."""

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
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except (OSError, ValueError):
        pass
    from lm_eval.tasks import TaskManager

    root = _tasks_folder()
    found = {}
    for name, entry in TaskManager().task_index.items():
        path = None if entry.yaml_path is None else Path(entry.yaml_path).relative_to(root).as_posix()
        found[name] = {"kind": entry.kind.name, "path": path, "tags": sorted(entry.tags)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(found))
    except (OSError, SyntheError):
        pass  # it is only slower without
    return found


def names(pattern: str | None) -> dict[str, dict[str, Any]]:
    """The tasks of the harness and of synthe whose name a pattern fits, or has `pattern` in it; None: all."""
    own = {path.stem: {"kind": "TASK", "path": path.name, "tags": []} for path in OWN.glob("*.yaml")}
    known = index() | own
    if pattern is None:
        chosen = sorted(known)
    elif any(c in pattern for c in "*?["):
        chosen = sorted(fnmatch.filter(known, pattern))
    else:
        chosen = sorted(name for name in known if pattern.lower() in name.lower())
    return {name: {**known[name], "kind": known[name]["kind"].lower().removeprefix("py_")} for name in chosen}


def manager(include: Sequence[Path], metadata: Mapping[str, Any], wanted: Sequence[str] = ("*",)) -> Any:
    """The harness's TaskManager over its own tasks, ours and those below the folders of `include`, which win.

    The harness's are left out where all `wanted` are tasks of the others, or files of tasks.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry, Kind, TaskIndex

    for folder in include:
        if not folder.is_dir():
            raise InputError(f"no such folder of tasks: {folder}", "--include-path names a folder with task YAML files")
    made = TaskManager(include_path=[OWN, *include], include_defaults=False, metadata=dict(metadata))
    known = made.task_index

    def alone(name: str) -> bool:
        entry = known.get(name) or (TaskIndex.entry_from_path(_task_file(name)) if _is_file(name) else None)
        return entry is not None and entry.kind in (Kind.TASK, Kind.PY_TASK)

    if not all(alone(name) for name in wanted):
        root = _tasks_folder()
        for name, entry in index().items():
            path = None if entry["path"] is None else root / entry["path"]
            known.setdefault(name, Entry(name, Kind[entry["kind"]], path, tags=set(entry["tags"])))
    return made


def resolve(names: Iterable[str], known: Mapping[str, Any]) -> list[str]:
    """Each of `names` as the harness knows it: a name, the path of a YAML file, or all that a pattern fits."""
    found: list[str] = []
    for name in names:
        if name in known:
            found.append(name)
        elif _is_file(name):
            found.append(str(_task_file(name)))
        elif fitting := sorted(fnmatch.filter(known, name)):
            found += [each for each in fitting if known[each].kind.name != "TAG"]
        else:
            near = closest(name, known)
            raise InputError(
                f"unknown task '{name}'", f"did you mean '{near}'?" if near else "`synthe eval list` shows the tasks"
            )
    return list(dict.fromkeys(found))


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _task_file(name: str) -> Path:
    """The path of a task's file; InputError where there is no such file, or it is no task."""
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
