"""A person's data: all of it for them to see, and none of it left after deletion."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, MetaData, Row, Table, func, inspect, select

from synthe_core.swarm.knowledge import word_index
from synthe_core.swarm.knowledge.conversations import message_of
from synthe_core.swarm.knowledge.facts import fact_of
from synthe_core.swarm.knowledge.tables import SCHEMA, conversations, facts, messages
from synthe_core.swarm.store import Store

FORMAT = 1
PAGE = 500
"""Rows that are read at once."""


def export_lines(store: Store, user: str, *, named: bool = True) -> Iterator[str]:
    """Everything that is stored of a user as one JSON object, in pieces, each row on a line of its own: facts with
    their history, and conversations. However much it is, only PAGE rows of it are in memory.

    The rows of other tables with a column `user`, such as answers and pairs, are in `tables`. Vectors that a model made
    of a text are left out. named: whether the user's name is there. The database is read as it is at one moment: read
    the pieces to their end soon.
    """
    store.prepare(SCHEMA)
    own = {facts.name, messages.name, conversations.name}
    with store.read() as connection:
        head = {"format": FORMAT, "user": user} if named else {"format": FORMAT}
        yield json.dumps(head, ensure_ascii=False)[:-1] + ', "facts": '
        yield from _array(asdict(fact_of(row)) for row in _rows(connection, facts, user, facts.c.id))
        yield ', "conversations": {'
        for number, name in enumerate(_conversations(connection, user)):
            yield ("," if number else "") + f"\n{json.dumps(name, ensure_ascii=False)}: "
            yield from _array(map(_turn, _rows(connection, messages, user, messages.c.id, conversation=name)))
        yield '}, "tables": {'
        others = [table for table in _tables(connection) if table.name not in own]
        for number, table in enumerate(others):
            yield ("," if number else "") + f"\n{json.dumps(table.name)}: "
            yield from _array(_plain(row._mapping) for row in _rows(connection, table, user))
        yield "}}\n"


def export(store: Store, user: str) -> dict[str, Any]:
    """The same as one value."""
    values: dict[str, Any] = json.loads("".join(export_lines(store, user)))
    return values


def _array(values: Iterable[dict[str, Any]]) -> Iterator[str]:
    start = "[\n"
    for each in values:
        yield start + json.dumps(each, ensure_ascii=False)
        start = ",\n"
    yield "[]" if start == "[\n" else "]"


def _rows(
    connection: Connection, table: Table, user: str, *order: ColumnElement[Any], **where: str
) -> Iterator[Row[Any]]:
    """The rows of a user in a table, read page by page."""
    query = table.select().where(table.c.user == user, *(table.c[name] == value for name, value in where.items()))
    yield from connection.execute(query.order_by(*order), execution_options={"yield_per": PAGE})


def _conversations(connection: Connection, user: str) -> list[str]:
    """Their names, the oldest first."""
    first = func.min(messages.c.id)
    query = select(messages.c.conversation).where(messages.c.user == user).group_by(messages.c.conversation)
    return list(connection.scalars(query.order_by(first)))


def _turn(row: Row[Any]) -> dict[str, Any]:
    message = message_of(row)
    return {"role": message.role, "text": message.text, "time": message.time, "id": message.id}


def forget(store: Store, user: str) -> dict[str, int]:
    """Deletes every row of a user in every table, and its words from the index, the file's free pages and the log.

    Returns how many rows of each table were deleted. Models that were trained with the data are not changed.
    """
    store.prepare(SCHEMA)
    counts = {}
    with store.transaction() as connection:
        for table in reversed(_tables(connection)):  # a row is deleted before the row that it refers to
            number = connection.scalar(select(func.count()).select_from(table).where(table.c.user == user)) or 0
            connection.execute(table.delete().where(table.c.user == user))
            counts[table.name] = int(number)
        word_index.rebuild(connection)
    store.flush()
    return counts


def _tables(connection: Connection) -> list[Table]:
    """The tables of the file that have a column `user`, whoever owns them, each after those that it refers to."""
    inspector = inspect(connection)
    names = [
        name
        for name in inspector.get_table_names()
        if any(column["name"] == "user" for column in inspector.get_columns(name))
    ]
    tables = MetaData()
    tables.reflect(connection, only=names)
    return [table for table in tables.sorted_tables if table.name in names]


def _plain(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, bytes)}
