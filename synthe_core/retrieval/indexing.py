"""Bringing an index up to date with files: what is new or changed is read, what vanished is removed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from synthe_core.data.document_text.passages import passages, with_pages
from synthe_core.data.document_text.reading import READERS, read_document
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.retrieval.document_index import DocumentIndex, IndexedDocument
from synthe_core.retrieval.embedder import Embedder

SUFFIXES = frozenset({*READERS, ".txt", ".text", ".md", ".markdown", ".rst"})
"""Of the files of a folder that are read; a file that is named itself may have any."""
WORDS = 200
"""Words of a passage at most."""
OVERLAP = 30
"""Words of a passage that the next one of its section begins with, at most."""
BATCH = 16
"""Passages that are embedded between two reports."""


class Changes(NamedTuple):
    """How many documents were added, changed, removed, left as they are, and could not be read."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    failed: int = 0


def index_documents(
    index: DocumentIndex, paths: Sequence[Path], embedder: Embedder | None = None, *, words: int = WORDS
) -> Iterator[Event]:
    """Yields progress and notices, and at the end a Result with the counts of `Changes` and of the whole index.

    Files that have the size and time of before are not read again, unless `words` is another number than before.
    Documents below a folder of `paths` whose file vanished are removed; one that cannot be read is reported, and
    its earlier text stays. An interrupted run goes on where it stopped.
    """
    roots = [Path(os.path.abspath(path)) for path in paths]
    files = list(_files(roots))
    known = {each.source: each for each in index.documents()}
    again = index.setting("words") != str(words)
    index.set("words", str(words))
    counts = Changes()._asdict()
    for number, (path, name) in enumerate(files):
        yield Progress("reading", number, len(files), "documents")
        try:
            counts[_bring_up_to_date(index, path, name, known.get(str(path)), words, again)] += 1
        except InputError as error:
            counts["failed"] += 1
            yield Notice(f"{error.message}: {error.hint}" if error.hint else error.message, "warning")
    yield Progress("reading", len(files), len(files), "documents")
    vanished = _vanished(known, roots, {str(path) for path, _ in files})
    if vanished:
        index.remove(vanished)
        counts["removed"] = len(vanished)
    if embedder is not None:
        yield from embed_passages(index, embedder)
    yield Result({**counts, **totals(index)}, index.path)


def embed_passages(index: DocumentIndex, embedder: Embedder) -> Iterator[Event]:
    """Makes the vectors that are missing, and removes those of other models."""
    missing = index.without_vector(embedder.name)
    for first in range(0, len(missing), BATCH):
        yield Progress("embedding", first, len(missing), "passages")
        some = missing[first : first + BATCH]
        index.put_vectors(embedder.name, [id for id, _ in some], embedder.embed([text for _, text in some]))
    if missing:
        yield Progress("embedding", len(missing), len(missing), "passages")
    index.forget_vectors(embedder.name)


def totals(index: DocumentIndex) -> dict[str, int]:
    """{"documents": ..., "passages": ...} of an index."""
    counts = index.counts()
    return {"documents": len(counts), "passages": sum(counts.values())}


def matching(index: DocumentIndex, names: Sequence[str]) -> list[IndexedDocument]:
    """The documents of an index that `names` name: by name, by path, or by a folder of either.

    InputError for one that names none.
    """
    chosen: dict[str, IndexedDocument] = {}
    documents = index.documents()
    for name in names:
        path, absolute = Path(name), Path(os.path.abspath(name))
        some = [
            each
            for each in documents
            if Path(each.name).is_relative_to(path) or Path(each.source).is_relative_to(absolute)
        ]
        if not some:
            near = get_close_matches(name, [each.name for each in documents], 1)
            hint = f"did you mean {near[0]}?" if near else f"see: synthe documents list {index.path}"
            raise InputError(f"{index.path} has no document {name}", hint)
        chosen |= {each.source: each for each in some}
    return list(chosen.values())


def _bring_up_to_date(
    index: DocumentIndex, path: Path, name: str, known: IndexedDocument | None, words: int, again: bool
) -> str:
    """Reads one file if it must be; returns which count of `Changes` it belongs to. InputError if it cannot be read."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    facts = (status.st_size, status.st_mtime_ns)
    if known is not None and not again and known[4:] == facts and known.name == name:
        return "unchanged"
    document = read_document(path)
    entry = IndexedDocument(str(path), name, document.title, document.digest, *facts)
    if known is not None and not again and known.digest == document.digest:
        index.touch(entry)
        return "unchanged"
    pieces = passages(document.text, _count_words, words, min(OVERLAP, words // 2))
    index.put(entry, with_pages(pieces, document.text, document.pages))
    return "added" if known is None else "changed"


def _count_words(text: str) -> int:
    return len(text.split())


def _files(roots: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """(file, its name in the index): a folder's files in order, without hidden ones and unknown kinds, each once.

    Links to folders are not followed. InputError for a root that does not exist, or a folder without documents.
    """
    seen: set[Path] = set()
    for root in roots:
        if root.is_file():
            each = [(root, root.name)]
        elif root.is_dir():
            each = [(path, str(Path(root.name) / path.relative_to(root))) for path in _walk(root)]
            if not each:
                kinds = ", ".join(sorted(SUFFIXES))
                raise InputError(f"{root} has no documents", f"files with these endings are read: {kinds}")
        else:
            raise InputError(f"no such file or folder: {root}", "name documents, or folders of them")
        for path, name in each:
            if path not in seen:
                seen.add(path)
                yield path, name


def _walk(root: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}", "check its permissions") from None

    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(folder, name)


def _vanished(known: Iterable[str], roots: Sequence[Path], present: set[str]) -> list[str]:
    return [
        source for source in known if source not in present and any(Path(source).is_relative_to(root) for root in roots)
    ]
