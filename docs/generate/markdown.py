"""Pieces of Markdown: tables, code blocks, and docstrings as prose."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

SPECIAL = str.maketrans({"\\": "\\\\", "*": "\\*", "_": "\\_", "<": "&lt;", ">": "&gt;", "[": "\\[", "]": "\\]"})


def escaped(text: str) -> str:
    """`text` as it is, outside of code; text in backticks stays code."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else part.translate(SPECIAL) for part in parts)


def cell(text: str) -> str:
    """`text` for a cell of a table: one line, with its bars escaped."""
    return " ".join(escaped(text).split()).replace("|", "&#124;")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def block(text: str, language: str = "text") -> str:
    """`text` as a block of code."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def prose(thing: Any) -> str:
    """The docstring of `thing`: paragraphs as prose, indented lines as code."""
    paragraphs = re.split(r"\n\s*\n", (inspect.getdoc(thing) or "").strip())
    parts = [block(inspect.cleandoc(text)) if text.startswith("  ") else f"{escaped(text)}\n" for text in paragraphs]
    return "\n".join(parts)


def summary(thing: Any) -> str:
    """The first paragraph of the docstring of `thing`, and the equations that it announces, without its sources."""
    first, *rest = re.split(r"\n\s*\n", (inspect.getdoc(thing) or "").strip())
    if first.endswith((",", ":")) and rest and rest[0].startswith("  "):
        first = f"{first} {rest[0]}"
    return re.split(r"\s*Sources?: ", first)[0].strip()


def sources(thing: Any) -> str:
    """What follows `Source:` or `Sources:` in the docstring of `thing`, to the end of the paragraph."""
    match = re.search(r"Sources?: (.*?)(?:\n\s*\n|$)", (inspect.getdoc(thing) or "").strip(), flags=re.DOTALL)
    return " ".join(match[1].split()).rstrip(".") if match else ""
