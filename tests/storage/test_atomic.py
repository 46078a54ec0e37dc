from __future__ import annotations

import os
from pathlib import Path

import pytest

from synthe_core.errors import InputError, WorkError
from synthe_core.storage import atomic
from synthe_core.storage.atomic import new_file, new_folder, write_file
from synthe_core.storage.claim import REPLACED, partial_path, sweep


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files and folders that are synced, and `rename` where a file takes its place."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_sync(handle: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def record_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(atomic.os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_replace)
    return calls


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads the names of open files")
def test_a_file_is_synced_before_it_is_renamed_and_its_folder_afterwards(tmp_path: Path, synced: list[str]) -> None:
    with new_file(tmp_path / "a") as partial:
        partial.write_text("new")
    assert [synced[0][:3], synced[0][-8:], *synced[1:]] == [".a.", ".partial", "rename", tmp_path.name]
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("content", ["text é\n", b"\x00\xff"])
def test_a_file_of_text_or_bytes(tmp_path: Path, content: str | bytes) -> None:
    write_file(tmp_path / "a", "old")
    write_file(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == (content.encode() if isinstance(content, str) else content)


def test_a_file_is_unchanged_after_an_error(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), new_file(tmp_path / "a") as partial:
        partial.write_text("new")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"), new_file(tmp_path):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "a", "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(WorkError, match="the disk is full"):
        write_file(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_is_replaced_or_unchanged(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with new_folder(tmp_path / "f") as partial:
            (partial / content).touch()
    with pytest.raises(RuntimeError), new_folder(tmp_path / "f") as partial:
        (partial / "third").touch()
        raise RuntimeError
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["f", "f/new"]


def test_sweep_removes_partial_files_and_restores_a_folder_between_its_renames(tmp_path: Path) -> None:
    partial_path(tmp_path / "a").touch()
    partial_path(tmp_path / "f").mkdir()
    partial_path(tmp_path / "g").with_suffix(REPLACED).mkdir()
    (tmp_path / "other").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "other"]
