"""A client that hangs up cancels its work, wherever the work is: in the queue, on the engine's thread, in another."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from synthe_core.data import chat_template
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import PrefillFinished
from synthe_core.serving.api import state
from synthe_core.serving.api.context import ClientDisconnected
from synthe_core.serving.api.endpoints import ENDPOINTS
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.serving.api.conftest import CHATML
from tests.serving.api.scripted import Scripted

WAIT = 60.0
LONG = "the sea " * 1000  # more than is tokenized in the event loop
USER = [{"role": "user", "content": "x"}]


def hang_up(server: Server, path: str, body: dict[str, Any], after: Callable[[], object]) -> None:
    """Sends a request and closes the connection once `after` has returned."""
    content = json.dumps(body).encode()
    lines = (f"POST {path} HTTP/1.1", "Host: a", "Content-Type: application/json", f"Content-Length: {len(content)}")
    head = "".join(f"{line}\r\n" for line in (*lines, ""))
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as sock:
        sock.sendall(head.encode() + content)
        after()


def wait_until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(int(WAIT / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it does not come")


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def real(checkpoints: Path, logged: list[str]) -> Iterator[Server]:
    """A server of its own over real models; `chatty` has a chat template."""
    models = [LoadedModel.load(checkpoints / name) for name in ("plain", "chatty")]
    models[1].tokenizer.chat_template = CHATML
    with AsyncEngine(models) as engine, Server(engine, Settings(log=logged.append)) as server:
        yield server


@pytest.mark.parametrize(
    "path,body",
    [
        ("/v1/embeddings", {"input": ["a", "b"]}),
        ("/v1/completions", {"prompt": ["a", "b"], "echo": True, "logprobs": 1, "max_tokens": 0}),
        ("/v1/completions", {"prompt": "a", "n": 2, "max_tokens": 4, "stream": True}),
        ("/v1/chat/completions", {"messages": USER, "n": 2, "max_tokens": 4}),
    ],
)
def test_requests_to_the_engine_are_cancelled(path: str, body: dict[str, Any]) -> None:
    engine = Scripted(lambda request: [PrefillFinished(1, 0)])  # and no end
    with Server(engine, Settings()) as server:  # type: ignore[arg-type]
        hang_up(server, path, {"model": "m", **body}, lambda: wait_until(lambda: len(engine.requests) == 2))
        assert all(engine.cancelled.acquire(timeout=WAIT) for _ in range(2))


def test_a_report_that_waits_for_the_engine_is_not_made(
    real: Server, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = real.engine
    begun, release, made = threading.Event(), threading.Event(), []

    def hold() -> None:
        begun.set()
        assert release.wait(WAIT)

    monkeypatch.setattr(state, "observe", lambda *_, **__: made.append(1))
    holding = engine.call(hold)
    try:
        assert begun.wait(WAIT)
        admission = engine.engine.admission
        body = {"model": "plain", "text": "the sea"}
        hang_up(real, "/api/introspect", body, lambda: wait_until(lambda: admission.num_waiting == 1))
        wait_until(lambda: admission.num_waiting == 0)
    finally:
        release.set()
    holding.result(WAIT)
    engine.call(lambda: None).result(WAIT)
    wait_until(lambda: logged)
    assert not made and "/api/introspect  499" in logged[0]


@pytest.mark.parametrize("part", ["observe", "report_of", "_fields"])
def test_a_report_that_is_being_made_ends_early(
    real: Server, logged: list[str], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass on the engine's thread, the report beside it, and its lines: at the second learner, memory or line."""
    begun, ended, checks = threading.Event(), threading.Event(), []
    make = getattr(state, part)

    def made(*arguments: Any, check: Callable[[], None], **options: Any) -> Any:
        def waiting() -> None:
            checks.append(1)
            if len(checks) == 2:
                begun.set()
                wait_until(lambda: raises(check))
            check()

        try:
            return make(*arguments, check=waiting, **options)
        except ClientDisconnected:
            ended.set()
            raise

    monkeypatch.setattr(state, part, made)
    hang_up(real, "/api/introspect", {"model": "plain", "text": "the sea"}, lambda: begun.wait(WAIT))
    assert ended.wait(WAIT)
    wait_until(lambda: not real.app.api.background_count and not real.engine.engine.admission.num_waiting)
    assert len(checks) == 2
    wait_until(lambda: logged)
    assert "/api/introspect  499" in logged[0]
    monkeypatch.setattr(state, part, make)
    report = httpx.post(
        f"{real.url}/api/introspect", json={"model": "plain", "text": "a"}, timeout=WAIT, trust_env=False
    )
    assert report.status_code == 200  # nothing has stayed behind


def raises(check: Callable[[], None]) -> bool:
    try:
        check()
    except ClientDisconnected:
        return True
    return False


@pytest.mark.parametrize(
    "path,body",
    [
        ("/v1/completions", {"model": "plain", "prompt": LONG}),
        ("/v1/chat/completions", {"model": "plain", "messages": [{"role": "user", "content": LONG}], "stream": True}),
        ("/v1/embeddings", {"model": "plain", "input": [LONG]}),
        ("/tokenize", {"model": "plain", "prompt": LONG}),
        ("/detokenize", {"model": "plain", "tokens": [65] * len(LONG)}),
        ("/api/introspect", {"model": "plain", "text": LONG}),
    ],
)
def test_long_texts_that_wait_for_their_turn_are_not_read(real: Server, path: str, body: dict[str, Any]) -> None:
    """The places for tokenizing are taken; after that there is nothing left to do."""
    api, done = real.app.api, []
    tokenize = api.tokenize

    async def counted(work: Callable[[], Any]) -> Any:
        return await tokenize(lambda: done.append(1) or work())

    api.tokenize = counted  # type: ignore[method-assign]
    places = api.tokenizing._places
    while not places.locked():
        asyncio.run(places.acquire())
    hang_up(real, path, body, lambda: wait_until(lambda: api.tokenizing._counts.total() == 1))
    wait_until(lambda: api.tokenizing._counts.total() == 0)
    assert not done and not real.engine.engine.metrics.requests


def test_a_model_renders_one_prompt_at_a_time_though_nobody_waits_for_it(
    real: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = threading.Semaphore(0), threading.Event()
    running: list[int] = []
    most: list[int] = []

    def slow(*arguments: Any, **options: Any) -> str:
        running.append(1)
        most.append(len(running))
        begun.release()
        assert release.wait(WAIT)
        running.pop()
        return "x"

    monkeypatch.setattr(chat_template, "render", slow)
    lock = real.app.api.template_locks["chatty"]
    body = {"model": "chatty", "messages": USER, "max_tokens": 1}
    for number in range(3):  # the first renders, the others wait and give up
        hang_up(
            real,
            "/v1/chat/completions",
            body,
            lambda n=number: begun.acquire(timeout=WAIT) if not n else wait_until(lambda: lock._waiters),
        )
        if number:
            wait_until(lambda: not lock._waiters)
        assert lock.locked()
    release.set()
    wait_until(lambda: not lock.locked())
    assert most == [1]


def test_what_changes_something_is_done_to_the_end() -> None:
    """A client that hangs up leaves no half of it: of the endpoints with a body, these are not cancelled."""
    uncancellable = {each.handler.__name__ for each in ENDPOINTS if each.body and not each.cancellable}
    assert uncancellable == {"feedback", "fork_session", "load_adapter", "review", "decide", "rollback", "change_fact"}
    assert not [each.path for each in ENDPOINTS if each.cancellable and not each.body and each.method != "GET"]
