"""Suites: lists of tasks in YAML files that people can edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from synthe_core.errors import InputError, unknown
from synthe_core.layers.learner import Spec

FOLDERS = (Path(__file__).parent / "suites", Path("suites"))
"""The folders of suites; those in the working folder take precedence."""

CHAT = "chat"
"""What is judged by `eval chat`, though it reads like a suite."""


class Entry(Spec):
    """A task, a group or a pattern of names, as in `--tasks`."""

    task: str
    num_fewshot: int | None = Field(None, ge=0, description="examples before the question; default the task's own")


class Suite(Spec):
    """The content of a suite's file."""

    description: str = ""
    tasks: list[Entry | str] = Field(..., min_length=1)
    metadata: dict[str, Any] = Field({}, description="for tasks that generate their data from it")

    @property
    def entries(self) -> list[Entry]:
        return [Entry(task=each) if isinstance(each, str) else each for each in self.tasks]


def suites() -> dict[str, Path]:
    """Every suite by name."""
    return {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.yaml"))}


def load_suite(name: str) -> Suite:
    """The suite with that name, or in the file with that path."""
    known = suites()
    path = known.get(name) or Path(name).expanduser()
    if name not in known and path.suffix not in (".yaml", ".yml"):
        if name == CHAT:
            raise InputError(f"{name} is no suite of tasks", "synthe eval chat MODEL --questions FILE --judge MODEL")
        raise unknown("suite", name, known)
    try:
        return Suite.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read the suite {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"] if part not in ("Entry", "str"))
        raise InputError(
            f"{path}: {place or 'suite'}: {fault['msg'][:1].lower()}{fault['msg'][1:]}",
            "a suite is {description: ..., tasks: [NAME, {task: NAME, num_fewshot: N}], metadata: {...}}",
        ) from None
