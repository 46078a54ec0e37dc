"""Adapters come and go while their model is serving, and each is a model of its own."""

from __future__ import annotations

import pytest

from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import NotFound
from tests.adapters.conftest import base, saved  # noqa: F401
from tests.inference.conftest import said


def test_adapters_are_loaded_used_and_unloaded(base, ask, tmp_path):  # noqa: F811
    paths = [saved(tmp_path / name, base, {"rank": 4}, seed).path for seed, name in enumerate("ab")]
    with AsyncEngine([LoadedModel.load(base)], max_state_bytes=1 << 28) as engine:
        plain = said(engine.submit(ask(model="base")))
        for name, path in zip("ab", paths, strict=True):
            engine.load_adapter("base", name, path)
        tickets = [engine.submit(ask(count=12, model=name, logprobs=0)) for name in ("base", "base:a", "base:b") * 2]
        found = [[event.logprob.logprob for event in list(t)[1:-1]] for t in tickets]
        assert found[:3] == found[3:] and found[0] != found[1] != found[2] != found[0]
        for name, path, got in zip("ab", paths, found[1:], strict=False):
            with AsyncEngine([LoadedModel.load(path, name)], max_state_bytes=1 << 28) as other:
                merged = [event.logprob.logprob for event in list(other.submit(ask(count=12, model=name)))[1:-1]]
                assert got == pytest.approx(merged, abs=1e-3)
        running = engine.submit(ask(count=60, model="base:a"))
        next(iter(running))
        engine.unload_adapter("base", "a")
        assert list(running)[-1].reason == "length"
        with pytest.raises(NotFound):
            engine.submit(ask(model="base:a"))
        with pytest.raises(InputError, match="already"):
            engine.load_adapter("base", "b", paths[0])
        engine.load_adapter("base", "a", paths[1])
        assert said(engine.submit(ask(model="base:a"))) == said(engine.submit(ask(model="base:b")))
        assert said(engine.submit(ask(model="base"))) == plain
