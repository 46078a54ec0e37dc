"""The rows of tables: JSON lines, JSON arrays, CSV, TSV and Parquet, each with a field that holds the text."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from synthe_core.data.content import BOM, LONGEST, content, damage, kind, lines
from synthe_core.data.json_stream import json_values, parse_row
from synthe_core.errors import InputError, unknown

Row = tuple[str, str, str]
"""Place, text and label."""
Columns = tuple[str, ...] | None
"""Names of the columns that are needed; None: all."""


def rows(path: Path, field: str, label_field: str | None) -> Iterator[Row]:
    """The rows of a table, by its suffix."""
    columns = tuple(name for name in (field, label_field) if name is not None)
    for place, row in records(path, columns):
        if not isinstance(row, dict):
            raise InputError(f'{place}: a row is an object such as {{"{field}": ...}}, not a {type(row).__name__}')
        yield place, text_of(row, field, place), label_of(row, label_field, place)


def records(path: Path, columns: Columns = None) -> Iterator[tuple[str, Any]]:
    """(place, value) of each row of a table; of a table with a header, an object."""
    return RECORDS[kind(path)](path, columns)


def has_field(path: Path, field: str) -> bool:
    """Whether the first row of a table can be read and has `field`."""
    try:
        with damage(path):
            return next(rows(path, field, None), None) is not None
    except InputError:
        return False


def text_of(row: dict[str, Any], field: str, place: str) -> str:
    """The text of a row ("" where it is null); an InputError names the place and the fields that are there."""
    if field not in row:
        error = unknown("field", field, map(str, row))
        raise InputError(f"{place}: {error.message}", f"{error.hint} (set data.field)")
    text = row[field]
    if not isinstance(text, str | None):
        raise InputError(f"{place}: field '{field}' holds a {type(text).__name__}, not text", "set data.field")
    return text or ""


def label_of(row: dict[str, Any], field: str | None, place: str) -> str:
    """The label of a row ("" if it is null, or without a field), as text."""
    if field is None:
        return ""
    if field not in row:
        error = unknown("field", field, map(str, row))
        raise InputError(f"{place}: {error.message}", f"{error.hint} (set data.labels)")
    label = row[field]
    if not isinstance(label, str | int | None):
        raise InputError(f"{place}: field '{field}' holds a {type(label).__name__}, no label", "set data.labels")
    return "" if label is None else str(label)


def _json_lines(path: Path, columns: Columns) -> Iterator[tuple[str, Any]]:
    if next(content(path), b"").removeprefix(BOM).lstrip().startswith(b"["):  # an array under a wrong name
        yield from json_values(path)
        return
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: invalid UTF-8 at byte {error.start} of the line") from error
        yield place, parse_row(text, place)


def _json(path: Path, columns: Columns) -> Iterator[tuple[str, Any]]:
    return json_values(path)


def _csv(path: Path, columns: Columns) -> Iterator[tuple[str, Any]]:
    """The first line names the columns. Separated by commas, tabs, semicolons or bars: whichever shows the first of
    `columns`, or the most columns."""
    text = _text_lines(path)
    first = next(text, "")
    usual = "\t" if kind(path) == ".tsv" else ","
    csv.field_size_limit(LONGEST)
    candidates = (usual, *",\t;|")
    separator = max(candidates, key=lambda each: len(_columns(first, each)))
    if columns is not None:
        separator = next((each for each in candidates if columns[0] in _columns(first, each)), usual)
    table = csv.reader(chain([first], text), delimiter=separator, strict=True)
    names: list[str] = []
    try:
        for cells in table:
            place = f"{path}, line {table.line_num}"
            if not names:
                names = [name.strip() for name in cells]
                continue
            if not cells:
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{place}: the row has {len(cells)} columns, and the header has {len(names)}",
                    "write texts with separators or line breaks in quotes",
                )
            yield place, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {table.line_num}: malformed: {error}", "write texts in quotes") from None


def _columns(line: str, separator: str) -> list[str]:
    return [name.strip() for cells in csv.reader([line], delimiter=separator) for name in cells]


def _text_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(lines(path), start=1):
        try:
            yield line.decode("utf-8") + "\n"
        except UnicodeDecodeError as error:
            place = f"{path}, line {number}: invalid UTF-8 at byte {error.start} of the line"
            raise InputError(place, "save the table as UTF-8") from error


def _parquet(path: Path, columns: Columns) -> Iterator[tuple[str, Any]]:
    import pyarrow  # slow to import, and only needed here
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if columns is not None and not set(columns) <= set(names):
                yield str(path), dict.fromkeys(names)  # whose reader says which names there are
                return
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=columns and list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}", "make or download it again") from error


RECORDS: dict[str, Callable[[Path, Columns], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
"""How tables are read, by suffix."""
PERHAPS = {".json", ".csv", ".tsv"}
"""Tables that are read in a folder only if they have the field: folders have such files for other purposes too."""
