"""What a store needs of the kind of database that it is on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from synthe_core.errors import InputError, SyntheError, WorkError

try:
    from sqlalchemy import Connection, Engine
except ModuleNotFoundError:
    raise InputError("a swarm's database needs SQLAlchemy", "install it: pip install 'synthe[swarm]'") from None

BUSY_TIMEOUT = 60.0
"""Seconds to wait for another process's transaction."""
CONNECTIONS = 8
"""Connections that stay open; more are opened when more threads need one."""


class Database(Protocol):
    """name: what messages call it. engine: SQLAlchemy's, whose transactions begin as `options` say."""

    name: str
    engine: Engine

    def options(self, write: bool) -> Mapping[str, Any]:
        """Execution options of a connection whose transaction writes, or reads alone."""

    def turn(self) -> AbstractContextManager[None]:
        """Within the block nobody else begins to write. WorkError if another process does for `BUSY_TIMEOUT`."""

    def failure(self, said: str) -> SyntheError:
        """One line for what the database has said."""

    def faults(self, connection: Connection) -> list[str]:
        """What is wrong with the stored data, a line each."""

    def clean(self) -> None:
        """Gives the place of deleted rows back, as far as the database can. Called within a turn."""

    def size(self) -> int:
        """Bytes that it takes."""

    def forked(self) -> None:
        """The process is a child of the one that opened it, whose connections it must not use."""


def locked(name: str) -> WorkError:
    """Another process has written for too long."""
    hint = "a process keeps a transaction open: end it"
    return WorkError(f"{name} was locked for {BUSY_TIMEOUT:.0f} s by another process", hint)
