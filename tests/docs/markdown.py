"""Markdown as the tests read it: blocks of code, headings with their anchors, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.paths import ROOT

LANGUAGES = {"console", "json", "python", "sh", "text", "yaml"}
"""console: commands after `$ `, which a test runs, with their output. sh: commands that a test only parses."""

FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,})(?P<language>.*)$")


class Block(NamedTuple):
    """A block of code: where it begins (its line, from 1), its language, and its text."""

    path: Path
    line: int
    language: str
    text: str


class Broken(ValueError):
    """A file whose blocks of code do not pair up, with the place."""


def files() -> list[Path]:
    """Every Markdown file of the project."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def relative(path: Path) -> str:
    """The path of a file from the project's folder."""
    return path.relative_to(ROOT).as_posix()


def split(path: Path, text: str | None = None) -> tuple[list[Block], str]:
    """The blocks of code of a file, and the rest of it with a blank line for each line of code.

    Broken where a block is never closed, is opened within another, or names no language that is known.
    """
    blocks: list[Block] = []
    prose: list[str] = []
    opening: re.Match[str] | None = None
    start, lines = 0, []
    for number, line in enumerate((path.read_text(encoding="utf-8") if text is None else text).splitlines(), 1):
        match = FENCE.match(line)
        if opening is None and match is None:
            prose.append(line)
            continue
        prose.append("")
        place = f"{path.name}:{number}"
        if opening is None and match is not None:
            if match["language"].strip() not in LANGUAGES:
                raise Broken(f"{place}: a block of code opens as {match['language']!r}, not one of {sorted(LANGUAGES)}")
            opening, start, lines = match, number, []
        elif opening is not None and match is not None and match["marks"].startswith(opening["marks"]):
            if match["language"].strip():
                raise Broken(f"{place}: a block of code opens within the one of line {start}")
            code = [each.removeprefix(opening["indent"]) for each in lines]
            blocks.append(Block(path, start, opening["language"].strip(), "\n".join(code) + "\n"))
            opening = None
        else:
            lines.append(line)
    if opening is not None:
        raise Broken(f"{path.name}:{start}: a block of code is never closed")
    return blocks, "\n".join(prose)


def blocks(path: Path, language: str) -> list[Block]:
    """The blocks of a file in that language."""
    return [block for block in split(path)[0] if block.language == language]


def anchors(path: Path) -> set[str]:
    """The anchors of a file's headings, as GitHub and MkDocs both make them (for headings without doubles)."""
    headings = re.findall(r"^#{1,6} +(.*?) *#*$", split(path)[1], flags=re.MULTILINE)
    return {slug(heading) for heading in headings}


def slug(heading: str) -> str:
    """`Add a learner, or two` -> `add-a-learner-or-two`."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("\\", "")
    text = re.sub(r"(?<!\w)[*_]+|[*_]+(?!\w)", "", text)
    return re.sub(r"[^\w\s-]", "", text).strip().lower().replace(" ", "-")


def links(path: Path) -> Iterator[tuple[int, str]]:
    """Line and target of every link and picture of a file, outside of code."""
    for number, line in enumerate(split(path)[1].splitlines(), 1):
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line)):
            yield number, target
