"""Every Markdown file of the project: blocks of code pair up, links lead somewhere, paths that are named exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.markdown import Broken, anchors, blocks, files, links, relative, split
from tests.paths import ROOT

FILES = [pytest.param(path, id=relative(path)) for path in files()]
PATH = re.compile(r"`((?:synthe_core|synthe_cli|tests|recipes|docs|completions)/[\w./*{},-]*)`")


@pytest.mark.parametrize("path", FILES)
def test_code_blocks_are_closed(path: Path) -> None:
    split(path)


@pytest.mark.parametrize(
    "text,message",
    [
        ("$ synthe serve\n```\n\n## Next\n", "opens as ''"),
        ("```sh\nls\n", "never closed"),
        ("```sh\nls\n\n```text\nfile\n```\n", "opens within"),
        ("```klingon\n```\n", "opens as 'klingon'"),
    ],
)
def test_unclosed_code_blocks_are_reported(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Broken, match=message):
        split(tmp_path / "page.md", text)


@pytest.mark.parametrize("path", FILES)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for line, target in links(path):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        where = (path.parent / file).resolve() if file else path
        assert where.exists(), f"{relative(path)}:{line}: no file {target}"
        if anchor:
            assert anchor in anchors(where), f"{relative(path)}:{line}: no heading {target}"


@pytest.mark.parametrize("path", FILES)
def test_pages_link_only_to_pages_of_the_site(path: Path) -> None:
    """MkDocs knows the files of docs/ alone: a page links no file outside of it."""
    docs = ROOT / "docs"
    for line, target in links(path):
        if docs in path.parents and not re.match(r"https?://|#", target):
            assert docs in (path.parent / target).resolve().parents, f"{relative(path)}:{line}: {target}"


@pytest.mark.parametrize("path", FILES)
def test_paths_of_the_project_exist(path: Path) -> None:
    if path.name == "CHANGELOG.md":
        return  # it names files that are gone
    for name in PATH.findall(path.read_text(encoding="utf-8")):
        for each in _alternatives(name):
            assert list(ROOT.glob(each)) if "*" in each else (ROOT / each).exists(), f"{relative(path)}: no {each}"


def _alternatives(name: str) -> list[str]:
    """`a/{b,c}.py` -> `a/b.py`, `a/c.py`."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", name)
    return [f"{match[1]}{each}{match[3]}" for each in match[2].split(",")] if match else [name]


@pytest.mark.parametrize("path", FILES)
def test_python_compiles(path: Path) -> None:
    for block in blocks(path, "python"):
        compile(block.text, f"{relative(path)}:{block.line}", "exec")
