"""Conversations outlive the process that held them, belong to one model, and are used by one request at a time."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from synthe_core.errors import InputError
from synthe_core.inference import session_store
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import Busy, NotFound, QuotaExceeded
from synthe_core.inference.session_store import SessionLimits
from tests.inference.conftest import output_ids
from tests.processes import run_program


def serve(served, folder=None):
    return AsyncEngine([served], sessions=folder, max_state_bytes=1 << 28)


@pytest.mark.parametrize("saved", [True, False])
def test_a_session_continues(memory, ask, tmp_path, saved):
    with serve(memory, tmp_path if saved else None) as engine:
        whole = output_ids(engine.submit(ask(count=20)))
        first = list(engine.submit(ask(count=8, session_id="talk")))
        info = engine.sessions.get("talk")
        assert info.tokens == 17 and info.saved == saved and info.model == "memory"
        assert engine.sessions.fork("talk", "other").tokens == 17
        second = list(engine.submit(ask((), 12, session_id="talk")))
        assert output_ids(first) + output_ids(second) == whole
        assert (second[-1].num_prompt_tokens, second[-1].num_cached_tokens) == (17, 16)
        assert output_ids(engine.submit(ask((), 12, session_id="other"))) == whole[8:]
        assert {info.id for info in engine.sessions.list()} == {"talk", "other"}
        engine.sessions.delete("other")
        with pytest.raises(NotFound):
            engine.sessions.get("other")


def test_prefill_only_leaves_the_last_token_uncomputed(memory, ask, tmp_path):
    with serve(memory, tmp_path) as engine:
        whole = output_ids(engine.submit(ask(count=6)))
        assert output_ids(engine.submit(ask(count=0, session_id="read"))) == []
        assert engine.sessions.get("read").tokens == 9
        assert output_ids(engine.submit(ask((), 6, session_id="read"))) == whole


def test_a_session_survives_a_restart_and_belongs_to_its_model(memory, window, ask, tmp_path):
    with serve(memory, tmp_path) as engine:
        whole = output_ids(engine.submit(ask(count=10)))
        list(engine.submit(ask(count=4, session_id="talk")))
    (tmp_path / "garbage.safetensors").write_bytes(b"no session")
    with serve(memory, tmp_path) as engine:
        assert [info.id for info in engine.sessions.list()] == ["talk"]
        assert output_ids(engine.submit(ask((), 6, session_id="talk"))) == whole[4:]
    with serve(window, tmp_path) as engine, pytest.raises(InputError, match="belongs to memory"):
        engine.submit(ask(model="window", session_id="talk"))


def test_names_cannot_be_paths(engine, ask):
    for name in ("../x", "a/b", "", ".", "a b", "x" * 65, "-x", "a\0", "é"):
        with pytest.raises(InputError):
            engine.submit(ask(session_id=name))
    assert engine.sessions.list() == []


def test_one_request_at_a_time(memory, ask, tmp_path):
    with serve(memory, tmp_path) as engine:
        long = engine.submit(ask(count=100_000, session_id="talk"))
        next(iter(long))
        with pytest.raises(Busy, match="another request"):
            engine.submit(ask(session_id="talk"))
        long.cancel()
        assert list(long)[-1].reason == "cancelled"
        assert list(engine.submit(ask(session_id="talk")))[-1].reason == "length"


def test_shutdown_saves(memory, ask, tmp_path):
    engine = serve(memory, tmp_path)
    endless = engine.submit(ask(count=100_000, session_id="talk"))
    next(iter(endless))
    time.sleep(0.2)
    engine.close(deadline=0.1)
    written = list(endless)[-1].num_output_tokens
    with serve(memory, tmp_path) as engine:
        assert engine.sessions.get("talk").tokens == 9 + written > 9


KILLED = """
import os, signal, sys
from pathlib import Path
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Finished, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
engine = AsyncEngine([LoadedModel.load(Path(sys.argv[1]))], sessions=Path(sys.argv[2]), max_state_bytes=1 << 28)
greedy = SamplingParams(temperature=0)
def ask(count, id): return Request("memory", tuple(b"Once upon"), count, greedy, session_id=id, ignore_eos=True)
print([e.token_id for e in engine.submit(ask(6, "kept")) if isinstance(e, TokenOutput)], flush=True)
next(iter(engine.submit(ask(100000, "lost"))))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_saved_sessions_survive_sigkill(memory_path, memory: LoadedModel, ask, tmp_path):
    run = [sys.executable, "-c", KILLED, str(memory_path), str(tmp_path)]
    first = eval(run_program(run, capture_output=True, text=True).stdout)
    with serve(memory, tmp_path) as engine:
        assert [info.id for info in engine.sessions.list()] == ["kept"]
        assert output_ids(engine.submit(ask(count=12))) == first + output_ids(
            engine.submit(ask((), 6, session_id="kept"))
        )


@pytest.mark.parametrize("saved", [True, False])
def test_a_fork_of_a_busy_session_leaves_no_name_reserved(memory, ask, tmp_path, saved):
    """Neither name, whichever of the two was in use."""
    with serve(memory, tmp_path if saved else None) as engine:
        for name in ("talk", "other"):
            list(engine.submit(ask(count=2, session_id=name)))
        long = engine.submit(ask((), count=100_000, session_id="talk"))
        next(iter(long))
        for _ in range(2):
            with pytest.raises(Busy, match="'talk'"):
                engine.sessions.fork("talk", "copy")
        with pytest.raises(InputError, match="already"):
            engine.sessions.fork("other", "talk")
        fresh = engine.submit(ask(count=100_000, session_id="fresh"))
        next(iter(fresh))
        with pytest.raises(Busy, match="'fresh'"):
            engine.sessions.fork("other", "fresh")
        engine.sessions.fork("other", "third")  # which is free again
        for endless in (long, fresh):
            endless.cancel()
            list(endless)
        assert engine.sessions.fork("talk", "copy").id == "copy"
        assert engine.sessions._busy == {}


def test_a_failed_fork_leaves_no_name_reserved(memory, ask, tmp_path, monkeypatch):
    with serve(memory, tmp_path) as engine:
        list(engine.submit(ask(count=2, session_id="talk")))

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(session_store, "write_session", full)
            with pytest.raises(OSError):
                engine.sessions.fork("talk", "copy")
        assert engine.sessions.fork("talk", "copy").id == "copy"


def test_limits_are_of_each_owner_and_count_what_is_being_written(memory, ask, tmp_path):
    one = memory.state_bytes(1)
    limits = SessionLimits(max_count=3, max_bytes=2 * one + one // 2)
    with AsyncEngine([memory], sessions=tmp_path, session_limits=limits, max_state_bytes=1 << 28) as engine:
        mine, yours = "a" * 32, "b" * 32
        list(engine.submit(ask(count=2, session_id="first", owner=mine)))
        long = engine.submit(ask(count=100_000, session_id="second", owner=mine))
        next(iter(long))
        with pytest.raises(QuotaExceeded, match="are allowed"):
            engine.submit(ask(count=2, session_id="third", owner=mine))  # the second is not written yet
        with pytest.raises(QuotaExceeded):
            engine.sessions.fork("first", "third", mine)
        list(engine.submit(ask(count=2, session_id="third", owner=yours)))
        long.cancel()
        list(long)
        engine.sessions.delete("first", mine)
        list(engine.submit(ask(count=2, session_id="third", owner=mine)))
        assert {info.id for info in engine.sessions.list(mine)} == {"second", "third"}
        assert {info.id for info in engine.sessions.list(yours)} == {"third"}
        assert engine.sessions.count() == 3 and engine.sessions._busy == {}


def test_in_memory_an_owner_with_many_sessions_drops_its_own(memory, ask):
    one = memory.state_bytes(1)
    with AsyncEngine([memory], cache_bytes=4 * one + one // 2, max_state_bytes=1 << 28) as engine:
        mine, yours = "a" * 32, "b" * 32
        list(engine.submit(ask(count=2, session_id="old", owner=yours)))
        for name in ("a", "b", "c", "d", "e", "f"):
            list(engine.submit(ask(count=2, session_id=name, owner=mine)))
        assert {info.id for info in engine.sessions.list(mine)} == {"d", "e", "f"}
        assert {info.id for info in engine.sessions.list(yours)} == {"old"}
    few = AsyncEngine([memory], session_limits=SessionLimits(2, None), max_state_bytes=1 << 28)
    with few as engine:
        for name in ("a", "b", "c"):
            list(engine.submit(ask(count=2, session_id=name)))
        assert {info.id for info in engine.sessions.list()} == {"b", "c"}


def test_the_folder_of_sessions_is_absolute(memory, ask, tmp_path, monkeypatch):
    """A server leaves absolute paths out of its answers."""
    monkeypatch.chdir(tmp_path)
    with serve(memory, Path("chats")) as engine:
        list(engine.submit(ask(count=1, session_id="one")))
        assert engine.sessions.folder == tmp_path / "chats"
    assert list((tmp_path / "chats").iterdir())
