"""A person's data: all of it for them to see, and none of it left after deletion."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, MetaData, Table, func, inspect, select

from synthe_core.swarm.knowledge import word_index
from synthe_core.swarm.knowledge.conversations import message_of
from synthe_core.swarm.knowledge.facts import fact_of
from synthe_core.swarm.knowledge.tables import SCHEMA, conversations, facts, messages
from synthe_core.swarm.store import Store

FORMAT = 1


def export(store: Store, user: str) -> dict[str, Any]:
    """Everything that is stored of a user, as plain values for JSON: facts with their history, and conversations.

    The rows of other tables with a column `user`, such as answers and pairs, are in `tables`. Vectors that a model made
    of a text are left out.
    """
    store.prepare(SCHEMA)
    own = {facts.name, messages.name, conversations.name}
    with store.read() as connection:
        own_facts = connection.execute(facts.select().where(facts.c.user == user).order_by(facts.c.id)).all()
        own_messages = connection.execute(
            messages.select().where(messages.c.user == user).order_by(messages.c.id)
        ).all()
        others = {
            table.name: [_plain(row._mapping) for row in connection.execute(table.select().where(table.c.user == user))]
            for table in _tables(connection)
            if table.name not in own
        }
    turns: dict[str, list[dict[str, Any]]] = {}
    for message in map(message_of, own_messages):
        turn = {"role": message.role, "text": message.text, "time": message.time, "id": message.id}
        turns.setdefault(message.conversation, []).append(turn)
    return {
        "format": FORMAT,
        "user": user,
        "facts": [asdict(fact_of(row)) for row in own_facts],
        "conversations": turns,
        "tables": others,
    }


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
