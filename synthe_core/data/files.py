"""Local texts: plain files and tables, compressed or not, alone, in folders or by pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from synthe_core.data.content import BOM, COMPRESSED, content, damage, kind
from synthe_core.data.documents import PIECE, Piece, PieceReader, Source, cut_near, digest_of, key_of
from synthe_core.data.finding import find, literal_part
from synthe_core.data.rows import PERHAPS, RECORDS, has_field, rows
from synthe_core.errors import InputError

PLAIN = frozenset(
    f".{suffix}"
    for suffix in (
        *("txt", "text", "md", "markdown", "rst", "tex", "org", "raw", "tokens", "html", "css", "yaml", "yml", "toml"),
        *("py", "pyi", "c", "h", "cc", "cpp", "hpp", "cu", "rs", "go", "js", "ts", "java", "kt", "swift", "rb", "lua"),
        *("sh", "sql"),
    )
)
"""Suffixes read as plain text in a folder; a file that is named outright is read whatever it is called."""


class Files(Source):
    """The texts in `paths`: a plain file is one document; every row of a table is one, its `field`.

    A row's label is its `label_field`, a plain file's the first folder on the way to it from the folder that was named.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], field: str, label_field: str | None = None, notes: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.paths = list(paths)
        self.field = field
        self.label_field = label_field
        self.notes = tuple(notes)
        self._digests: dict[Path, bytes] = {}

    @classmethod
    def open(cls, name: str, field: str, label_field: str | None = None) -> Files | None:
        """The files that `name` stands for; None if nothing is there. InputError if no text is in them."""
        paths, notes = find(name, lambda path: kind(path) in PLAIN | RECORDS.keys())
        if Path(name).expanduser().is_dir():
            others = {path for path in paths if kind(path) in PERHAPS and not has_field(path, field)}
            if others == set(paths):
                raise InputError(
                    f"folder {name} holds no text: no row of {min(others)} has a field '{field}'", "set data.field"
                )
            if others:
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                notes.append(f"left out, as tables without the field '{field}': {min(others)}{more}")
            paths = [path for path in paths if path not in others]
        return cls(name, paths, field, label_field, notes) if paths else None

    def identity(self) -> Any:
        status = [(path, path.stat()) for path in self.paths]
        # The time of the last change of the inode cannot be set back, as that of the content can.
        files = [(str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in status]
        return ["files", self.field, files]

    def size(self) -> int | None:
        if any(kind(p) in RECORDS or p.suffix.lower() in COMPRESSED for p in self.paths):
            return None
        return sum(p.stat().st_size for p in self.paths)

    def pieces(self, skip: int = 0) -> Iterator[Piece]:
        for number, piece in enumerate(self._pieces()):
            if number >= skip:
                yield piece

    def reader(self, place: Any = None) -> PieceReader:
        return FileReader(self, place)

    def _pieces(self) -> Iterator[Piece]:
        document = -1
        for path in self.paths:
            for piece in self.pieces_of(path, document + 1):
                document = piece.document
                yield piece

    def pieces_of(self, path: Path, document: int = 0) -> Iterator[Piece]:
        """The pieces of one of the files, whose first document has the number `document`."""
        with damage(path):
            if kind(path) in RECORDS:
                for place, text, label in rows(path, self.field, self.label_field):
                    if text:
                        yield Piece.whole(text.encode("utf-8", "replace"), place, document, label)
                        document += 1
                return
            label = self._folder(path)
            for piece in _plain(path, document, self._digest):
                yield piece._replace(label=label)

    def _digest(self, path: Path) -> bytes:
        """The digest of a plain file, which is read for it once."""
        if path not in self._digests:
            self._digests[path] = digest_of(_without_mark(content(path)))
        return self._digests[path]

    def _folder(self, path: Path) -> str:
        """The first folder below what the name says before its first wildcard; "" where there is none."""
        between = path.relative_to(literal_part(Path(self.name).expanduser())).parts[:-1]
        return between[0] if between and self.label_field is None else ""


class FileReader(PieceReader):
    """The pieces of files from a place on: a file, and the number of a piece in it."""

    def __init__(self, files: Files, place: Any = None) -> None:
        self._files = files
        self._file, self._number = (0, 0) if place is None else (int(place["file"]), int(place["pieces"]))
        self._pieces = islice(self._open(), self._number, None)

    def __next__(self) -> Piece:
        while (piece := next(self._pieces, None)) is None:
            if self._file >= len(self._files.paths):
                raise StopIteration
            self._file, self._number = self._file + 1, 0
            self._pieces = self._open()
        self._number += 1
        return piece

    @property
    def place(self) -> Any:
        return {"file": self._file, "pieces": self._number}

    def _open(self) -> Iterator[Piece]:
        return self._files.pieces_of(self._files.paths[self._file]) if self._file < len(self._files.paths) else iter(())


def _without_mark(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """A text without the byte order mark at its beginning."""
    yield next(chunks, b"").removeprefix(BOM)
    yield from chunks


def _plain(path: Path, document: int, digest: Callable[[Path], bytes]) -> Iterator[Piece]:
    """The pieces of a plain text; each is delayed until it is known whether another follows. digest: of a file of more
    than one."""
    buffer, offset, key, whole = b"", 0, b"", b""
    for chunk in content(path):
        if offset == 0 and not buffer:
            offset, chunk = (len(BOM), chunk[len(BOM) :]) if chunk.startswith(BOM) else (0, chunk)
        buffer += chunk
        while len(buffer) > PIECE:
            cut = cut_near(buffer, PIECE, reach=PIECE // 2) or PIECE
            key, whole = key or key_of(buffer[:cut]), whole or digest(path)
            yield Piece(buffer[:cut], str(path), document, offset, False, key, "", whole)
            buffer, offset = buffer[cut:], offset + cut
    if buffer:
        whole = whole or digest_of([buffer])
        yield Piece(buffer, str(path), document, offset, True, key or key_of(buffer), "", whole)
