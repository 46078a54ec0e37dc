"""A person's data: all of it for them to see, and none of it left after deletion."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Table, func, select

from synthe_core.swarm.knowledge.conversations import message_of
from synthe_core.swarm.knowledge.facts import fact_of
from synthe_core.swarm.knowledge.tables import SCHEMA, conversations, erase_index, facts, messages
from synthe_core.swarm.store import Store, metadata

FORMAT = 1


def export(store: Store, user: str) -> dict[str, Any]:
    """Everything that is stored of a user, as plain values for JSON: facts with their history, and conversations.

    The rows of other tables with a column `user`, such as answers and pairs, are in `tables`.
    """
    store.prepare(SCHEMA)
    with store.read() as connection:
        own_facts = connection.execute(facts.select().where(facts.c.user == user).order_by(facts.c.id)).all()
        own_messages = connection.execute(
            messages.select().where(messages.c.user == user).order_by(messages.c.id)
        ).all()
        others = {
            table.name: [dict(row._mapping) for row in connection.execute(table.select().where(table.c.user == user))]
            for table in _tables(store)
            if table not in (facts, messages, conversations)
        }
    talks: dict[str, list[dict[str, Any]]] = {}
    for message in map(message_of, own_messages):
        turn = {"role": message.role, "text": message.text, "time": message.time, "id": message.id}
        talks.setdefault(message.conversation, []).append(turn)
    return {
        "format": FORMAT,
        "user": user,
        "facts": [asdict(fact_of(row)) for row in own_facts],
        "conversations": talks,
        "tables": others,
    }


def forget(store: Store, user: str) -> dict[str, int]:
    """Deletes every row of a user in every table, and its words from the index, the file's free pages and the log.

    Returns how many rows of each table were deleted. Models that were trained with the data are not changed.
    """
    store.prepare(SCHEMA)
    counts = {}
    with store.transaction() as connection:
        for table in reversed(_tables(store)):  # a row is deleted before the row that it refers to
            number = connection.scalar(select(func.count()).select_from(table).where(table.c.user == user)) or 0
            connection.execute(table.delete().where(table.c.user == user))
            counts[table.name] = int(number)
        erase_index(connection)
    store.flush()
    return counts


def _tables(store: Store) -> list[Table]:
    """The tables that have a user's rows, each after those that it refers to."""
    existing = store.tables()
    return [table for table in metadata.sorted_tables if "user" in table.c and table.name in existing]
