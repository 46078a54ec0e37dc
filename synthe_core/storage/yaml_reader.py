"""Reading YAML with the position of every key, so that an error can name line and column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from synthe_core.errors import InputError, closest
from synthe_core.storage.json_reader import EXCERPT, UNTRUSTED

MAX_DEPTH = 64  # of an untrusted file
MAX_BYTES = 2**22
MAX_VALUES = 100_000
"""Values of a file, those that its aliases repeat included: nine lines of nine aliases each are 387 millions."""
_AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-9._]+)+")
Key = str | int
VALUE_ERRORS = (ValueError, OverflowError, TypeError, AttributeError, KeyError, RecursionError)
"""What the library raises for a malformed value, such as a date in month 13 or a number of 5,000 digits."""


class Position(NamedTuple):
    line: int
    column: int


class YamlSource(NamedTuple):
    """A parsed file: its name, its plain values, and the position of every key path (None: set by an option)."""

    name: str
    values: dict[str, Any]
    positions: dict[tuple[Key, ...], Position | None]

    def with_override(self, path: tuple[Key, ...]) -> YamlSource:
        """The same source, with the value at `path` marked as set by an option."""
        return self._replace(positions={**self.positions, path: None})

    def locate(self, path: Sequence[Key]) -> str:
        """`file:line:column` of the longest known prefix of `path`, or the file's name if no prefix is known.

        A value that an option has set is named by that option.
        """
        for end in range(len(path), 0, -1):
            if (prefix := tuple(path[:end])) in self.positions:
                position = self.positions[prefix]
                if position is None:
                    return f"--set {'.'.join(map(str, prefix))}"
                return f"{self.name}:{position.line}:{position.column}"
        return self.name


def read_yaml(path: Path) -> YamlSource:
    """Parses the YAML mapping in a file. InputError, with line and column where it is malformed."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"no such file: {path}", _suggestion(path)) from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a recipe", "a recipe is a .yaml file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})", "a recipe is a YAML text file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB", "a recipe is a short YAML file")
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> YamlSource:
    """Parses a YAML mapping; errors call it `name`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        positions: dict[tuple[Key, ...], Position | None] = {}
        _collect(node, (), positions, ())
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(f"{name}{position}: {error.problem or error.context}", "the YAML is malformed here") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name}: {str(error).splitlines()[0]}", "the YAML is malformed") from None
    except VALUE_ERRORS as error:
        raise InputError(f"{name}: a value is malformed: {str(error)[:100]}", "quote it, or correct it") from None
    if not isinstance(values, dict):
        raise InputError(f"{name} is not a mapping of keys", "a recipe has the keys model, data, train, runtime")
    return YamlSource(name, values, positions)


def parse_value(text: str, name: str) -> Any:
    """The YAML value in `text`, which is that of an option; errors call it `name`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, *VALUE_ERRORS):
        raise InputError(f"{name}: '{text}' is not a YAML value") from None
    try:
        _collect(node, (), {}, ())
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{name}: {error.problem}") from None
    return value


def decode_untrusted_yaml(content: bytes, name: str) -> str:
    """The text of a YAML file that is safe to parse: without aliases, which may expand to gigabytes, and not nested
    deeper than MAX_DEPTH. InputError otherwise."""
    try:
        text = content.decode("utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has an alias")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{name} is refused: {' '.join(str(error).split())[:EXCERPT]}", UNTRUSTED) from None
    return text


def _collect(
    node: Any, path: tuple[Key, ...], positions: dict[tuple[Key, ...], Position | None], parents: tuple[Any, ...]
) -> None:
    """Records the position of every key. Duplicate keys, nodes within themselves and lone surrogates are errors."""
    if node in parents:
        raise yaml.MarkedYAMLError(problem="an alias refers to what it is part of", problem_mark=node.start_mark)
    if isinstance(node, yaml.ScalarNode) and any("\ud800" <= letter <= "\udfff" for letter in node.value):
        raise yaml.MarkedYAMLError(problem="an escape stands for half a character", problem_mark=node.start_mark)
    if len(positions) > MAX_VALUES:
        problem = f"more than {MAX_VALUES:,} values, those that aliases repeat included"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    if isinstance(node, yaml.ScalarNode) and _is_ambiguous(node):
        problem = f"{node.value} is another number in YAML: write it in decimal without leading zeros, or in quotes"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    parents = (*parents, node)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, key.value if isinstance(key.value, str) else str(key.value))
            if child in positions:
                raise yaml.MarkedYAMLError(problem=f"the key '{child[-1]}' is given twice", problem_mark=key.start_mark)
            positions[child] = _position(key)
            _collect(key, child, positions, parents)
            _collect(value, child, positions, parents)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            positions[(*path, index)] = _position(value)
            _collect(value, (*path, index), positions, parents)


def _is_ambiguous(node: yaml.ScalarNode) -> bool:
    """Whether YAML reads another number than what is written: 0100 is 64 (octal), 1:30 is 90 (base 60)."""
    number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    return number and node.style is None and _AMBIGUOUS.fullmatch(node.value) is not None


def _position(node: Any) -> Position:
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)


def _suggestion(path: Path) -> str | None:
    near = closest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
    return f"did you mean {path.parent / near}?" if near else None
