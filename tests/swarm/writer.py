"""A program that writes numbers to a store, one a transaction, and prints each once it is committed.

python -m tests.swarm.writer LOCATION WRITER COUNT
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sqlalchemy import Column, Integer, Table

from synthe_core.swarm.store import Schema, Store, metadata

numbers = Table("test_numbers", metadata, Column("writer", Integer), Column("number", Integer))
totals = Table("test_totals", metadata, Column("id", Integer, primary_key=True), Column("total", Integer))
SCHEMA = Schema("test", (lambda connection: metadata.create_all(connection, [numbers, totals]),))


def location_of(argument: str) -> Path | str:
    """A program's argument: a URL, or a file."""
    return argument if "://" in argument else Path(argument)


def opened(location: Path | str) -> Store:
    store = Store(location)
    store.prepare(SCHEMA)
    return store


def write(store: Store, writer: int, number: int) -> None:
    """One number, and one more in the total, which two writers that read it at once would lose."""
    with store.transaction() as connection:
        connection.execute(numbers.insert().values(writer=writer, number=number))
        total = connection.scalar(totals.select().with_only_columns(totals.c.total))
        if total is None:
            connection.execute(totals.insert().values(id=1, total=1))
        else:
            connection.execute(totals.update().values(total=total + 1))


def main(path: str, writer: str, count: str, report: Callable[[object], object] = partial(print, flush=True)) -> None:
    store = opened(location_of(path))
    for number in range(int(count)):
        write(store, int(writer), number)
        report(number)


if __name__ == "__main__":
    main(*sys.argv[1:])
