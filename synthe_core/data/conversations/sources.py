"""Where rows of conversations, preferences and ratings come from: tables and the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from synthe_core.data.content import COMPRESSED, damage, kind
from synthe_core.data.corpora import missing
from synthe_core.data.finding import find
from synthe_core.data.hub import Hub
from synthe_core.data.rows import RECORDS, records
from synthe_core.errors import InputError


class RowSource(NamedTuple):
    """The rows of tables, or of a data set of the hub. notes: what is left out of a folder, each a line."""

    name: str
    files: tuple[Path, ...] = ()
    hub: Hub | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, name: str) -> RowSource:
        """The source that `name` stands for in a recipe. InputError if nothing is there, or no table is."""
        if name.startswith("hub:"):
            return cls(name, hub=Hub(name, ""))
        if name == "stdlib":
            raise InputError("stdlib is text, not conversations", "name a table: --data chats.jsonl")
        paths, notes = find(name, lambda path: kind(path) in RECORDS)
        if not paths:
            raise missing(name)
        if others := [path for path in paths if kind(path) not in RECORDS]:
            raise InputError(
                f"{others[0]} is no table of conversations",
                f"it ends in {', '.join(sorted(RECORDS))}, compressed or not",
            )
        return cls(name, tuple(paths), notes=tuple(notes))

    def identity(self) -> Any:
        """A JSON value that changes when the rows may have changed, cheap to make."""
        if self.hub is not None:
            return self.hub.identity()
        status = [(path, path.stat()) for path in self.files]
        return ["rows", [(str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in status]]

    def rows(self) -> Iterator[tuple[str, Any]]:
        """(place, row) of each row, in order."""
        if self.hub is not None:
            yield from self.hub.records()
        for path in self.files:
            with damage(path):
                yield from records(path)

    def part(self, place: str) -> float | None:
        """The share of the files that is read at the `place` of a row; None where it is not known."""
        sizes = [path.stat().st_size for path in self.files]
        before = 0
        for path, size in zip(self.files, sizes, strict=True):
            name, _, number = place.rpartition(" ")
            if name in (f"{path}, line", f"{path}, row"):
                count = _rows_in(path, size) if name.endswith("row") else _lines_in(path, size)
                return None if count is None else min(1.0, (before + size * int(number) / count) / sum(sizes))
            before += size
        return None


@lru_cache(64)
def _lines_in(path: Path, size: int) -> int | None:
    """The lines of a file; None for a compressed one, and for one that has all its rows on one line."""
    if path.suffix.lower() in COMPRESSED:
        return None
    with path.open("rb") as file:
        count = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    return count if count > 1 else None


@lru_cache(64)
def _rows_in(path: Path, size: int) -> int:
    """The rows of a Parquet file."""
    from pyarrow import parquet  # slow to import, and only needed here

    return int(parquet.read_metadata(path).num_rows)


def renamed(row: Any, columns: Mapping[str, str], place: str) -> Any:
    """The row with its columns under their usual names. InputError for a column that it has not."""
    if not columns or not isinstance(row, dict):
        return row
    for usual, name in columns.items():
        if name not in row:
            raise InputError(
                f"{place}: the row has no column {name!r}, which data.columns gives for {usual}",
                f"it has {', '.join(map(str, list(row)[:8]))}",
            )
    rest = {key: value for key, value in row.items() if key not in columns.values()}
    return rest | {usual: row[name] for usual, name in columns.items()}
