"""Names and docstrings use the field's terms: retired words are refused wherever they would be read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

FILES = sorted(path for package in ("synthe_core", "synthe_cli", "tests") for path in (ROOT / package).rglob("*.py"))
WORDS = (
    "asked clothes dress ear firing found hear heard hears kept lacking lane lesson misplaced orphan sure surest "
    "steady talk tell tells told undrawn undress unheard wear wearing wears whence whither worn"
)
RETIRED = frozenset(WORDS.split())
"""Refused as a part of an identifier, and as a word of a docstring."""
PROSE = RETIRED - {"asked", "found", "kept", "sure", "steady"}
"""In sentences these have their plain meaning: asked for, not found, kept in memory."""
ALLOWED = frozenset({"NotFound"})
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def words(identifier: str) -> set[str]:
    """The parts of `snake_case` and `CamelCase` in lower case."""
    return {word.lower() for word in WORD.findall(identifier)}


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name that a module gives to something of its own: (line, name)."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
            yield node.lineno, node.name


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every string that stands alone as a statement, so those below constants too: (line, text)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def retired(source: str) -> list[str]:
    """What a module says in retired words, a line each."""
    tree = ast.parse(source)
    lines = [f"{line}: {name}" for line, name in names(tree) if name not in ALLOWED and words(name) & RETIRED]
    for line, text in docstrings(tree):
        lines += [f"{line}: docstring: {word}" for word in sorted(set(re.findall(r"[a-z]+", text.lower())) & PROSE)]
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_retired_word_is_used(path: Path) -> None:
    assert not retired(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "told = 1",
        "def where_found(): ...",
        "class SurestToken: ...",
        "def f(was_asked): ...",
        "self.kept_rows = []",
        "match x:\n    case {'a': heard}: ...",
        '"""Whence a token reads."""',
        'LIMIT = 3\n"""What clothes weigh."""',
    ],
)
def test_a_retired_word_is_refused(source: str) -> None:
    assert retired(source)


@pytest.mark.parametrize("source", ["earlier = 1", "measure = 2", "tellurium = 3", '"""Not found; be sure."""'])
def test_words_that_contain_one_are_not(source: str) -> None:
    assert not retired(source)
