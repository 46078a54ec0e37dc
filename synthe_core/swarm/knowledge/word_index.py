"""The index of facts' words, as the database of the swarm has one."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from sqlalchemy import Connection

from synthe_core.swarm.knowledge import postgres_words, sqlite_words
from synthe_core.swarm.knowledge.hit import Hit


def create(connection: Connection) -> None:
    """Makes the index of the facts that there are."""
    _kind(connection).create(connection)


def create_again(connection: Connection) -> None:
    """Makes it where version 1 had another one, which did not know whose its entries were."""
    if not _is_postgres(connection) and not sqlite_words.is_current(connection):
        sqlite_words.drop_earlier(connection)
        sqlite_words.create(connection)


def rebuild(connection: Connection) -> None:
    """Removes the words of deleted facts, where they stay in the index until it is written anew."""
    if not _is_postgres(connection):
        sqlite_words.rebuild(connection)


def find(
    connection: Connection, words: Sequence[str], users: Sequence[str], *, history: bool, untrusted: bool
) -> list[Hit]:
    """The facts of these users with one of `words`, which are letters and digits; once for each word of it.

    Words are compared by their stems. history: facts too that hold no longer. untrusted: those too that nobody trusts.
    """
    return _kind(connection).find(connection, words, users, history=history, untrusted=untrusted)


def _kind(connection: Connection) -> ModuleType:
    return postgres_words if _is_postgres(connection) else sqlite_words


def _is_postgres(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"
