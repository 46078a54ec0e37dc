"""The documents of `synthe chat --documents`: an index, or files that are indexed first."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synthe_core.inference.loaded_model import LoadedModel
    from synthe_core.retrieval.retriever import Retriever
    from synthe_core.retrieval.search import Searcher


def open_documents(path: Path) -> Searcher:
    """Searches the index `path`, or the index of the file or folder `path` in the cache, brought up to date first.

    InputError for what does not exist or has no documents. Progress goes to stderr.
    """
    from synthe_cli.renderer import choose_renderer
    from synthe_core.events import drain
    from synthe_core.hardware.probe import cache_dir
    from synthe_core.retrieval.document_index import VERSION, DocumentIndex, is_index
    from synthe_core.retrieval.indexing import index_documents
    from synthe_core.retrieval.opening import open_searcher
    from synthe_core.retrieval.search import Searcher

    if is_index(path):
        return open_searcher(path)
    name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:16]
    file = Path(cache_dir()) / "documents" / f"{name}.{VERSION}.db"
    file.parent.mkdir(parents=True, exist_ok=True)
    index = DocumentIndex(file, create=True)
    with choose_renderer(as_json=False) as shown:
        drain(index_documents(index, [path]), shown.show)
    return Searcher(index)


def retriever_for(searcher: Searcher | None, model: LoadedModel) -> Retriever | None:
    """What gives the model's messages passages, as many as its context has room for; None without documents."""
    if searcher is None:
        return None
    from synthe_core.retrieval.retriever import Retriever, token_budget

    return Retriever(searcher, token_budget(model.max_length), lambda text: len(model.tokenizer.encode(text)))
