"""One writer of a path at a time: the second is refused by name, links are written through, and the leftovers of killed
writers are removed, those of living ones never."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from synthe_core.errors import InputError, WorkError
from synthe_core.storage import claim as claims
from synthe_core.storage.atomic import new_file, new_folder, write_file
from synthe_core.storage.claim import COMPLETE, LOCK, Busy, claim, partial_path, sweep
from synthe_core.storage.run_folder import new_run
from tests.paths import ROOT
from tests.processes import start

WRITER = """\
import sys, time
from pathlib import Path
from synthe_core.storage.atomic import new_file, new_folder
kind, path = sys.argv[1:]
with (new_folder if kind == "folder" else new_file)(Path(path)) as partial:
    (partial / "half" if kind == "folder" else partial).write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@contextmanager
def writer(kind: str, path: Path) -> Iterator[subprocess.Popen[Any]]:
    """A process that is in the middle of writing `path`."""
    command = [sys.executable, "-c", WRITER, kind, str(path)]
    process = start(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()


def test_a_claim_refuses_others_until_it_ends(tmp_path: Path) -> None:
    with claim(tmp_path / "a", "training in") as target:
        assert target == tmp_path / "a"
        message = rf"another process is training in .*a \(pid {os.getpid()}\)"
        with pytest.raises(Busy, match=message) as refused, claim(tmp_path / "a"):
            pass
        assert refused.value.exit_code == 2 and "name another path" in (refused.value.hint or "")
        with claim(tmp_path / "b"):
            pass
    with claim(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_a_claim_waits_on_request(tmp_path: Path) -> None:
    held, entered = claim(tmp_path / "a"), threading.Event()
    held.__enter__()

    def second() -> None:
        with claim(tmp_path / "a", wait=60):
            entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not entered.is_set()
    held.__exit__(None, None, None)
    thread.join(60)
    assert entered.is_set()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_leftovers_of_a_killed_writer_are_removed_and_those_of_a_living_one_are_not(
    tmp_path: Path, kind: str
) -> None:
    path, create = tmp_path / "a", new_folder if kind == "folder" else new_file
    with writer(kind, path) as process:
        before = names(tmp_path)
        assert any(name.startswith(".a.") and "partial" in name for name in before) and not path.exists()
        with pytest.raises(Busy, match=rf"pid {process.pid}"), create(path):
            pass
        sweep(tmp_path)
        assert names(tmp_path) == before
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert not path.exists() and names(tmp_path) == before
    with create(path) as partial:
        (partial / "x" if kind == "folder" else partial).write_text("whole")
    assert names(tmp_path) == (["a", "a/x"] if kind == "folder" else ["a"])


def test_a_lock_file_of_a_dead_process_is_no_claim(tmp_path: Path) -> None:
    (tmp_path / f".a{LOCK}").write_text("writing a: pid 1 on here")
    write_file(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"]


def test_a_file_system_without_locks_has_no_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(claims.fcntl, "flock", unsupported)
    leftover = partial_path(tmp_path / "a")
    leftover.touch()  # whose owner may be alive
    with claim(tmp_path / "a"), claim(tmp_path / "a"):
        write_file(tmp_path / "a", "x")
    assert names(tmp_path) == sorted(["a", leftover.name])


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_written_through(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target"
    if exists:
        target.write_text("old")
    (tmp_path / "link").symlink_to(Path("elsewhere") / "target")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and target.read_text() == "new" and not target.is_symlink()
    with claim(target), pytest.raises(Busy), new_file(tmp_path / "link"):
        pass


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_folder_is_written_through(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "target"
    if exists:
        target.mkdir()
    (tmp_path / "link").symlink_to("target")
    with new_folder(tmp_path / "link") as partial:
        (partial / "x").touch()
    assert (tmp_path / "link").is_symlink() and names(target) == ["x"]


def test_the_working_folder_is_filled_and_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    with new_run("name", Path(".")) as out, new_folder(out, claimed=True) as partial:
        for name in ("manifest.json", "sub/file", "config.json"):
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).touch()
    assert names(tmp_path) == ["config.json", "manifest.json", "sub", "sub/file"]
    assert tmp_path.stat().st_ino == before == Path(".").stat().st_ino
    with pytest.raises(InputError, match="not empty"), new_run("name", Path(".")):
        pass


def test_a_folder_below_an_unwritable_one_is_locked_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "mounted"
    out.mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and Path(path) != tmp_path)
    with new_run("name", out) as path:
        assert names(tmp_path) == ["mounted", f"mounted/{LOCK}"]
        with pytest.raises(Busy), claim(out):
            pass
        with new_folder(path, claimed=True) as partial:
            assert partial.parent == out
            (partial / "x").touch()
    assert names(out) == ["x"]


def test_a_folder_whose_filling_was_cut_short_is_finished_by_the_next_writer(tmp_path: Path) -> None:
    complete = partial_path(tmp_path / "out" / "x").with_name(f".0123456789ab{COMPLETE}")
    complete.mkdir(parents=True)
    (complete / "manifest.json").write_text("{}")
    (tmp_path / "out" / "weights").touch()  # which was moved already
    with pytest.raises(InputError, match="not empty"), new_run("name", tmp_path / "out"):
        pass
    assert names(tmp_path / "out") == ["manifest.json", "weights"]


def test_runs_without_a_name_of_their_own_are_numbered_past_claimed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with new_run("x", None) as first, new_run("x", None) as second:
        assert (first, second) == (Path("runs/x"), Path("runs/x-2"))
    assert names(tmp_path) == []  # not even runs/


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    thread = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    thread.start()
    write_file(tmp_path / "pipe", "content")
    thread.join(60)
    assert read == [b"content"] and names(tmp_path) == ["pipe"]
    write_file(Path("/dev/null"), "content")
    assert not Path("/dev/null").is_file()


def test_a_place_that_cannot_be_locked_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match="could not be written"), claim(tmp_path / "file" / "a", parents=True):
        pass
    with pytest.raises(WorkError, match="No such file"), claim(tmp_path / "no" / "a"):
        pass
