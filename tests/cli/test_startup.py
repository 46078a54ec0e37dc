"""Start-up without garbage collection, and the entry points of packages that are read once."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from synthe_cli.startup import without_collection
from synthe_core import registry
from synthe_core.registry import Table


def test_nothing_is_collected_within_the_block() -> None:
    assert gc.isenabled()
    before = gc.get_freeze_count()
    try:
        with without_collection():
            assert not gc.isenabled()
            made: list[list[int]] = [[] for _ in range(1000)]
            with without_collection():
                assert not gc.isenabled()
            assert not gc.isenabled(), "the outer block goes on"
        assert gc.isenabled() and gc.get_freeze_count() >= before + len(made)
    finally:
        gc.unfreeze()


def test_it_ends_with_an_error() -> None:
    with pytest.raises(KeyError), without_collection():
        raise KeyError
    assert gc.isenabled()
    gc.unfreeze()


def test_entry_points_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    read = registry.entry_points

    def counted() -> Any:
        calls.append(1)
        return read()

    monkeypatch.setattr(registry, "entry_points", counted)
    registry._installed.cache_clear()
    assert [list(Table("thing", f"synthe.things{number}", {"a": "b:c"})) for number in range(3)] == [["a"]] * 3
    assert len(calls) == 1
