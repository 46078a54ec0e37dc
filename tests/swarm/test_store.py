"""A store: transactions are whole, none is lost among threads, processes and kills, and its errors are one line."""

from __future__ import annotations

import os
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import IntegrityError

from synthe_core.errors import InputError, WorkError
from synthe_core.swarm import sqlite_database
from synthe_core.swarm.store import Schema, Store
from synthe_core.swarm.write_queue import WriteQueue
from tests.paths import ROOT
from tests.processes import LIMIT, run_program, start
from tests.swarm.killing import Log, run_killed
from tests.swarm.writer import SCHEMA, main, numbers, opened, totals, write

KILLS = [20, pytest.param(200, marks=pytest.mark.slow)]


@pytest.fixture
def store(location: Path | str) -> Iterator[Store]:
    opened_store = opened(location)
    yield opened_store
    opened_store.close()


@pytest.fixture
def file(tmp_path: Path) -> Store:
    """A store in a file, for what is a matter of files."""
    return opened(tmp_path / "swarm.db")


def count(store: Store) -> tuple[int, int]:
    """How many numbers there are, and the total that each writer raised by one."""
    with store.read() as connection:
        rows = connection.scalar(select(func.count()).select_from(numbers))
        return int(rows or 0), int(connection.scalar(select(totals.c.total)) or 0)


def test_a_transaction_is_committed_whole(store: Store) -> None:
    write(store, 0, 7)
    again = Store(store.location)
    assert count(again) == (1, 1)
    assert not again.faults()


def test_an_error_undoes_the_whole_transaction(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction() as connection:
        connection.execute(numbers.insert().values(writer=0, number=1))
        raise ZeroDivisionError
    assert count(store) == (0, 0)


def test_an_inner_transaction_is_undone_alone(store: Store) -> None:
    with store.transaction() as connection:
        connection.execute(numbers.insert().values(writer=0, number=1))
        with pytest.raises(ZeroDivisionError), store.transaction() as inner:
            inner.execute(numbers.insert().values(writer=0, number=2))
            raise ZeroDivisionError
        write(store, 0, 3)
        assert count(store) == (2, 1)  # a read sees what its own transaction wrote
    assert count(store) == (2, 1)


def test_a_write_within_a_read_is_refused(store: Store) -> None:
    with store.read(), pytest.raises(RuntimeError, match="write within a read"), store.transaction():
        pass


def test_a_reader_sees_one_moment(store: Store) -> None:
    write(store, 0, 1)
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(numbers)) == 1
        with ThreadPoolExecutor(1) as pool:
            pool.submit(write, store, 1, 1).result(LIMIT)
        assert connection.scalar(select(func.count()).select_from(numbers)) == 1
    assert count(store) == (2, 2)


def test_threads_lose_nothing(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: write(store, n % 16, n), range(400)))
    assert count(store) == (400, 400)


def test_processes_that_open_and_write_a_new_database_at_once_lose_nothing(location: Path | str) -> None:
    command = [sys.executable, "-m", "tests.swarm.writer", location]
    writers = [start([*command, str(n), "50"], cwd=ROOT, stdout=-1, stderr=-1) for n in range(4)]
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors.decode()
    store = Store(location)
    assert count(store) == (200, 200)
    assert not store.faults()
    store.close()


@pytest.mark.parametrize("kills", KILLS)
def test_a_kill_at_any_moment_leaves_every_committed_number(tmp_path: Path, kills: int) -> None:
    path, chance, committed = tmp_path / "swarm.db", random.Random(0), Counter[int]()
    for writer in range(kills):
        log = Log(tmp_path / f"{writer}.log")
        work = partial(main, str(path), str(writer), "1000000", log)
        assert not run_killed(work, after=chance.uniform(0.01, 0.3))
        committed[writer] = len(log.lines)
        store = Store(path)
        assert not store.faults()
        with store.read() as connection:
            rows = connection.execute(select(numbers.c.writer, func.count()).group_by(numbers.c.writer)).all()
        stored = {int(each): int(number) for each, number in rows}
        # the last transaction may be committed and not yet printed
        numbers_of = {each: stored.get(each, 0) for each in committed}
        assert all(number <= numbers_of[each] <= number + 1 for each, number in committed.items()), (committed, stored)
        assert count(store) == (sum(stored.values()),) * 2
        store.close()
    assert sum(committed.values()) > kills


def test_a_forked_process_has_connections_of_its_own(store: Store) -> None:
    write(store, 0, 1)
    pid = os.fork()
    if pid == 0:
        try:
            write(store, 1, 1)
        finally:
            os._exit(0 if count(store) == (2, 2) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    write(store, 0, 2)
    assert count(store) == (3, 3)


def test_a_constraint_is_the_callers_error(store: Store) -> None:
    write(store, 0, 1)
    with pytest.raises(IntegrityError), store.transaction() as connection:
        connection.execute(totals.insert().values(id=1, total=0))


def test_a_schema_is_migrated_in_one_transaction(store: Store) -> None:
    write(store, 3, 4)

    def rename(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE test_numbers RENAME COLUMN number TO figure"))

    def fail(connection: Connection) -> None:
        connection.execute(text("DROP TABLE test_numbers"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.prepare(Schema("test", (*SCHEMA.migrations, rename, fail)))
    assert count(store) == (1, 1)
    store.prepare(Schema("test", (*SCHEMA.migrations, rename)))
    store.prepare(Schema("test", (*SCHEMA.migrations, rename)))
    with store.read() as connection:
        assert connection.scalar(text("SELECT figure FROM test_numbers")) == 4


def test_tables_of_a_later_version_are_refused(store: Store) -> None:
    store.prepare(Schema("test", (*SCHEMA.migrations, lambda connection: None)))
    with pytest.raises(InputError, match="has version 2 of test, and this synthe knows 1"):
        store.prepare(SCHEMA)


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "swarm.db"
    path.write_bytes(b"no database at all\n" * 300)
    with pytest.raises(InputError, match=r"swarm\.db is damaged, or no SQLite database"):
        Store(path)
    with pytest.raises(InputError, match="no such folder"):
        Store(tmp_path / "nowhere" / "swarm.db")


def test_a_transaction_beyond_the_limit_of_bytes_fails_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "swarm.db", max_bytes=64 * 4096)
    store.prepare(SCHEMA)
    write(store, 0, 0)
    with pytest.raises(WorkError, match=r"swarm\.db is full"), store.transaction() as connection:
        for number in range(100_000):
            connection.execute(numbers.insert().values(writer=1, number=number))
    assert count(store) == (1, 1)
    store.flush()
    assert store.size() <= 64 * 4096


def test_a_lock_that_stays_is_named(file: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_database, "BUSY_TIMEOUT", 0.0)
    other = sqlite3.connect(file.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(WorkError, match="was locked"):
        write(opened(file.path), 0, 1)
    other.close()
    holder = WriteQueue(file.path)
    with holder.hold(0.0), pytest.raises(WorkError, match="was locked"):
        write(file, 0, 1)
    write(file, 0, 1)


def test_a_process_that_writes_without_a_pause_leaves_others_their_turn(store: Store) -> None:
    command = [sys.executable, "-m", "tests.swarm.writer", store.location, "1", "1000000"]
    process = start(command, cwd=ROOT, stdout=-1)
    assert process.stdout is not None and process.stdout.readline()
    for number in range(20):
        before = count(store)[0]
        write(store, 0, number)
        assert count(store)[0] - before < 50  # of the other's transactions, while this one waited
    process.kill()
    process.wait()


def test_a_flush_empties_the_log(file: Store) -> None:
    write(file, 0, 1)
    log = file.path.with_name("swarm.db-wal")
    assert log.stat().st_size > 0
    file.flush()
    assert log.stat().st_size == 0


def test_a_flush_beside_a_reader_of_an_earlier_moment_says_so(file: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_database, "BUSY_TIMEOUT", 0.0)
    other, quick = opened(file.path), Store(file.path)
    with other.read() as connection:
        connection.scalar(select(func.count()).select_from(numbers))
        write(quick, 0, 1)
        with pytest.raises(WorkError, match="is being read"):
            quick.flush()
    quick.flush()


def test_without_sqlalchemy_there_is_one_line() -> None:
    program = "import sys; sys.modules['sqlalchemy'] = None\nimport synthe_core.swarm.store"
    done = run_program([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("InputError: a swarm's database needs SQLAlchemy")
