"""The tool `search` reads an index, and says what is wrong with a query."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from synthe_core.agents.catalog import tools_named
from synthe_core.agents.tool import run_tool
from synthe_core.errors import InputError
from synthe_core.events import drain
from synthe_core.retrieval.document_index import DocumentIndex
from synthe_core.retrieval.indexing import index_documents


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "money.md").write_text("# Money\n\nRefunds are paid within fourteen days.\n")
    drain(index_documents(DocumentIndex(tmp_path / "docs.db", create=True), [tmp_path / "money.md"]))
    return tmp_path / "docs.db"


def test_passages_come_numbered_with_their_headings(index: Path) -> None:
    tools, never = tools_named(f"search={index}"), threading.Event()
    assert [each.name for each in tools] == ["search"]
    result = run_tool(tools, "search", json.dumps({"query": "refund"}), never)
    assert result == "[1] Money\nRefunds are paid within fourteen days."
    for arguments, word in (({"query": "zebra"}, "no passage"), ({"query": " "}, "query"), ({}, "query")):
        assert word in run_tool(tools, "search", json.dumps(arguments), never)


def test_an_index_must_be_named_and_exist(tmp_path: Path) -> None:
    for text in ("search", "search=", f"search={tmp_path / 'none.db'}"):
        with pytest.raises(InputError):
            tools_named(text)
