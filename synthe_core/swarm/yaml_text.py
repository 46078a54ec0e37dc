"""The text of swarm.yaml: a commented one to begin with, and changes of its specialists that leave the rest alone."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.storage.yaml_reader import parse_yaml
from synthe_core.swarm.spec import SpecialistSpec, SwarmSpec

WIDTH = 100
HEAD = """\
# A swarm: specialists on one base. Paths are relative to this folder. Every key below has its default;
# keys that are left out keep theirs.
"""
EXAMPLE = """\
# Specialists by name, as `synthe swarm add` writes them.
specialists:
"""
SPECIALISTS = "specialists"


def new_text(base: str) -> str:
    """A swarm.yaml for `base` with every key, its meaning and its default."""
    spec = SwarmSpec(base=base)
    parts = [HEAD + _line("base", base, SwarmSpec)]
    for key in SwarmSpec.model_fields:
        section = getattr(spec, key)
        if isinstance(section, Spec):
            about = (type(section).__doc__ or "").strip()
            lines = [_line(name, getattr(section, name), type(section), "  ") for name in type(section).model_fields]
            parts.append(f"{_comment(about)}{key}:\n{''.join(lines)}")
    keys = "".join(_line(name, "...", SpecialistSpec, "  #   ", bare=True) for name in SpecialistSpec.model_fields)
    return "\n".join([*parts, f"{EXAMPLE}  # NAME:\n{keys}"])


def with_specialist(text: str, name: str, spec: SpecialistSpec) -> str:
    """The text with another specialist at the end of `specialists`."""
    values = spec.model_dump(mode="json", exclude_defaults=True)
    block = yaml.dump({name: values}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)
    block = textwrap.indent(block, "  ")
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    source = parse_yaml(text, "swarm.yaml")
    if (position := source.positions.get((SPECIALISTS,))) is None:
        return "".join([*lines, f"\n{SPECIALISTS}:\n", block])
    first = position.line - 1
    if source.values[SPECIALISTS] == {}:  # written as {}
        lines[first] = f"{SPECIALISTS}:\n"
    return "".join([*lines[: _end(lines, first, 0)], block, *lines[_end(lines, first, 0) :]])


def without_specialist(text: str, name: str) -> str:
    """The text without that specialist. InputError if it has none of that name."""
    source = parse_yaml(text, "swarm.yaml")
    position = source.positions.get((SPECIALISTS, name))
    if position is None:
        raise InputError(f"no specialist is named '{name}'")
    lines = text.splitlines(keepends=True)
    first = position.line - 1
    return "".join([*lines[:first], *lines[_end(lines, first, position.column - 1) :]])


def _end(lines: list[str], first: int, indent: int) -> int:
    """The line after the block that begins at line `first` with `indent` spaces; comments and blank lines behind its
    last value are the next block's, unless they are indented further."""
    end = first + 1
    for number in range(first + 1, len(lines)):
        line = lines[number]
        depth = len(line) - len(line.lstrip(" "))
        if not line.strip():
            continue
        if depth <= indent:
            break
        end = number + 1
    return end


class _Dumper(yaml.SafeDumper):
    """Writes lists in one line, and texts of several lines as blocks."""


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(str, _text)


def _line(name: str, value: Any, spec: type[Spec], indent: str = "", *, bare: bool = False) -> str:
    """A key with its value and, above it, what it means. bare: the value is written as it is."""
    shown = value if bare else _inline(value)
    about = spec.model_fields[name].description
    if bare:
        return f"{indent}{name}: {shown}{' ' * max(1, 14 - len(name))}# {about}\n"
    return f"{_comment(about, indent)}{indent}{name}: {shown}\n"


def _comment(about: str | None, indent: str = "") -> str:
    return "".join(f"{indent}# {line}\n" for line in textwrap.wrap(about or "", WIDTH - len(indent)))


def _inline(value: Any) -> str:
    if isinstance(value, str):
        return yaml.safe_dump(value, allow_unicode=True, width=1 << 20).removesuffix("\n").removesuffix("\n...")
    return yaml.safe_dump(value, default_flow_style=True, width=1 << 20).removesuffix("\n").removesuffix("\n...")
