"""The tool that searches an index of documents."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from synthe_core.agents.tool import ToolError
from synthe_core.retrieval.prompt import numbered
from synthe_core.retrieval.search import Searcher

PASSAGES = 4
"""Passages of a result."""


class SearchTool:
    """Returns the passages that belong to a query, numbered, with their headings."""

    name = "search"
    description = "Searches documents and returns the passages that belong to a query. Cite their numbers, such as [1]."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "a question, or words of the documents"}},
        "required": ["query"],
        "additionalProperties": False,
    }

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher

    def run(self, arguments: Mapping[str, Any], cancelled: threading.Event) -> str:
        """The passages. ToolError without a query, and where none belongs to it."""
        query = arguments.get("query")
        if not isinstance(query, str) or not query.strip():
            raise ToolError("the argument 'query' is a text")
        hits = self.searcher.search(query, PASSAGES)
        if not hits:
            raise ToolError("no passage has any of these words; try others")
        return numbered(hits)
