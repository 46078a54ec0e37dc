"""`synthe documents`: an index of documents, and searching it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthe_cli.escape import escaped, json_text, printable
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.hub_models import find_model
from synthe_cli.options import JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_cli.rows import print_rows
from synthe_core.events import drain
from synthe_core.retrieval.by import By

if TYPE_CHECKING:
    from synthe_core.retrieval.search import SearchResult

app = typer.Typer(cls=Group, help="Index documents, and search them.", **SETTINGS)

IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="The file of an index, such as docs.db.")]


@app.command(
    cls=Command,
    short_help="Index documents, or bring an index up to date.",
    epilog="""\
synthe documents index handbook/ --out docs.db                        search by words
synthe documents index handbook/ --out docs.db --model models/smollm2 and by meaning
synthe documents index handbook/ terms.pdf --out docs.db              again, to read what has changed""",
)
def index(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATHS", help="Files or folders: text, Markdown, HTML, PDF, DOCX.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The index, made if it does not exist.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Embed passages with this model: one of synthe, a GGUF file, or a folder of sentence-transformers."
            " Default: the model of the index, if it has one.",
        ),
    ] = None,
    words: Annotated[
        int, typer.Option("--words", min=20, max=2000, metavar="N", help="Words of a passage at most.")
    ] = 200,
    as_json: JsonOption = False,
) -> None:
    """Cut documents into passages and index them by words, and with a model by meaning.

    Run it again at any time: documents that have not changed are not read, and those that vanished from a named folder
    are removed. An interrupted run resumes. A file that cannot be read is reported and left out.
    """
    from synthe_core.retrieval.document_index import DocumentIndex
    from synthe_core.retrieval.indexing import index_documents
    from synthe_core.retrieval.opening import index_embedder

    opened = DocumentIndex(out, create=True)
    embedder = index_embedder(opened, None if model is None else find_model(model))
    with choose_renderer(as_json) as shown:
        result = drain(index_documents(opened, paths, embedder, words=words), shown.show)
        if as_json:
            shown.result(result)
            return
    values = {name: f"{value:,}" for name, value in result.values.items()}
    changes = [f"{values[name]} {name}" for name in ("added", "changed", "removed", "unchanged", "failed")]
    print(f"{', '.join(changes)}; documents: {values['documents']}, passages: {values['passages']}")
    print(escaped(out))


@app.command(
    cls=Command,
    short_help="Search an index.",
    epilog="""\
synthe documents search docs.db "refund period"
synthe documents search docs.db "how long can I return it" -k 3 --by meaning
synthe documents search docs.db "refund period" --json | jq -r .text""",
)
def search(
    file: IndexArgument,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A question, or words.")],
    limit: Annotated[int, typer.Option("--limit", "-k", min=1, max=1000, metavar="N", help="Number of passages.")] = 5,
    by: Annotated[
        By | None,
        typer.Option("--by", help="By words (BM25), by meaning (embeddings), or both fused. Default: all it has."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the passages that belong to a query, the best first."""
    from synthe_core.retrieval.document_index import DocumentIndex
    from synthe_core.retrieval.opening import open_searcher
    from synthe_core.retrieval.search import Searcher

    searcher = Searcher(DocumentIndex(file)) if by is By.words else open_searcher(file)
    hits = searcher.search(query, limit, by)
    for number, each in enumerate(hits, 1):
        print(json_text({"event": "passage", **_values(each)}) if as_json else _shown(number, each))
    if not hits and not as_json:
        print("no passage has any of these words", file=sys.stderr)


@app.command(
    "list",
    cls=Command,
    short_help="List the documents of an index.",
    epilog="""\
synthe documents list docs.db
synthe documents list docs.db --json | jq -r .source""",
)
def list_documents(file: IndexArgument, as_json: JsonOption = False) -> None:
    """List the documents of an index with their numbers of passages."""
    from synthe_core.retrieval.document_index import DocumentIndex
    from synthe_core.units import format_size

    opened = DocumentIndex(file)
    counts, documents = opened.counts(), opened.documents()
    values = [
        {"name": each.name, "title": each.title, "source": each.source, "bytes": each.size,
         "passages": counts.get(each.source, 0)}
        for each in documents
    ]  # fmt: skip
    rows = [[each.name, each.title, format_size(each.size), f"{counts.get(each.source, 0):,}"] for each in documents]
    print_rows("document", values, ["name", "title", "size", "passages"], rows, as_json, none="no documents")


@app.command(
    cls=Command,
    short_help="Remove documents from an index.",
    epilog="""\
synthe documents remove docs.db handbook/leave.md
synthe documents remove docs.db handbook/                  all of a folder""",
)
def remove(
    file: IndexArgument,
    names: Annotated[
        list[str], typer.Argument(metavar="NAMES", help="Documents or folders, as list shows them, or their paths.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Remove documents. Their text is overwritten in the index; the files stay as they are."""
    from synthe_core.retrieval.document_index import DocumentIndex
    from synthe_core.retrieval.indexing import matching

    opened = DocumentIndex(file)
    chosen = matching(opened, names)
    opened.remove([each.source for each in chosen])
    if as_json:
        print(json_text({"event": "result", "removed": [each.name for each in chosen]}))
    else:
        print(f"{len(chosen):,} removed")


def _values(each: SearchResult) -> dict[str, object]:
    return {"score": round(each.score, 6), **each.passage._asdict()}


def _shown(number: int, each: SearchResult) -> str:
    from synthe_core.retrieval.prompt import place_of

    return f"{number}. {escaped(place_of(each.passage))}\n{printable(each.passage.text)}\n"
