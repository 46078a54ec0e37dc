"""An index with the model whose embeddings it has."""

from __future__ import annotations

import os
from pathlib import Path

from synthe_core.errors import InputError
from synthe_core.retrieval.document_index import DocumentIndex
from synthe_core.retrieval.embedder import Embedder, open_embedder
from synthe_core.retrieval.search import Searcher

MODEL = "model"
"""The setting of an index with the path of its model."""


def open_searcher(path: Path) -> Searcher:
    """Searches an index by all it has. InputError for what is no index, and where its model has moved."""
    index = DocumentIndex(path)
    return Searcher(index, index_embedder(index))


def index_embedder(index: DocumentIndex, model: Path | None = None) -> Embedder | None:
    """The embedder of `model`, which becomes the index's, or else that of the index's model; None without any."""
    if model is not None:
        path = os.path.abspath(model)
        embedder = open_embedder(path)
        index.set(MODEL, path)
        return embedder
    recorded = index.setting(MODEL)
    if recorded is None:
        return None
    if not Path(recorded).exists():
        hint = "name where it is now: synthe documents index PATHS --out INDEX --model MODEL, or search --by words"
        raise InputError(f"{recorded}, the model of {index.path}, does not exist", hint)
    return open_embedder(recorded)
