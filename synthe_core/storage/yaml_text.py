"""YAML that remembers where each key stood, so that an error can name its line and column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from synthe_core.errors import InputError, closest

Key = str | int
NONE = (ValueError, OverflowError, TypeError, AttributeError, KeyError, RecursionError)
"""What the library raises for a value that is not what it looks like: a date in month 13, a number of 5,000 digits."""


class Place(NamedTuple):
    line: int
    column: int


class Source(NamedTuple):
    """A parsed file: its name, its plain values, and the place of every key path."""

    name: str
    values: dict[str, Any]
    places: dict[tuple[Key, ...], Place | None]

    def set_aside(self, path: tuple[Key, ...]) -> Source:
        """The same, knowing that the value at `path` did not come from the file."""
        return self._replace(places={**self.places, path: None})

    def where(self, path: Sequence[Key]) -> str:
        """`file:line:column` of the longest known beginning of `path`; the file's name alone where none is known.

        A value that was set aside is named by the option that set it.
        """
        for end in range(len(path), 0, -1):
            if (known := tuple(path[:end])) in self.places:
                place = self.places[known]
                return f"{self.name}:{place.line}:{place.column}" if place else f"--set {'.'.join(map(str, known))}"
        return self.name


def read(path: Path) -> Source:
    """Parses a YAML mapping; raises InputError with line and column where it is malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", _neighbours(path)) from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a recipe", "a recipe is a .yaml file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})", "a recipe is a YAML text file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Source:
    """`read` for text at hand; `name` is what errors call it."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        places: dict[tuple[Key, ...], Place | None] = {}
        _collect(node, (), places, ())
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(f"{name}{place}: {error.problem or error.context}", "the YAML is malformed here") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name}: {str(error).splitlines()[0]}", "the YAML is malformed") from None
    except NONE as error:
        raise InputError(f"{name}: a value is none: {str(error)[:100]}", "put quotes around it, or mend it") from None
    if not isinstance(values, dict):
        raise InputError(f"{name} is not a mapping of keys", "a recipe has the keys model, data, train, runtime")
    return Source(name, values, places)


def _collect(
    node: Any, path: tuple[Key, ...], places: dict[tuple[Key, ...], Place | None], above: tuple[Any, ...]
) -> None:
    """The place of every key; what YAML lets pass and nobody means (a key twice, a node within itself) is an error."""
    if node in above:
        raise yaml.MarkedYAMLError(problem="an alias refers to what it is part of", problem_mark=node.start_mark)
    if isinstance(node, yaml.ScalarNode) and any("\ud800" <= letter <= "\udfff" for letter in node.value):
        raise yaml.MarkedYAMLError(problem="an escape stands for half a character", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, key.value if isinstance(key.value, str) else str(key.value))
            if below in places:
                raise yaml.MarkedYAMLError(problem=f"the key '{below[-1]}' is given twice", problem_mark=key.start_mark)
            places[below] = Place(key.start_mark.line + 1, key.start_mark.column + 1)
            _collect(key, below, places, (*above, node))
            _collect(value, below, places, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[(*path, index)] = Place(value.start_mark.line + 1, value.start_mark.column + 1)
            _collect(value, (*path, index), places, (*above, node))


def _neighbours(path: Path) -> str | None:
    folder = path.parent if path.parent.is_dir() else None
    near = closest(path.name, [p.name for p in folder.iterdir()]) if folder else None
    return f"did you mean {path.parent / near}?" if near else None
