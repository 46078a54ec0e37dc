"""What a request costs beside its tokens: log-probabilities, long answers, threads; and who gives a place back."""

from __future__ import annotations

import asyncio
import math
import threading
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic_core import to_json

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import PromptLogprob
from synthe_core.inference.request import Busy, Request
from synthe_core.serving.api import response_format, state
from synthe_core.serving.api.context import SENDER, Api
from synthe_core.serving.api.engine_job import MAX_UNINTERRUPTED, EngineJob
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.json_parts import json_parts
from synthe_core.serving.api.metrics import Metrics
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.serving.api.scripted import Scripted, answer

TYPE = "Content-Type: application/json"
USER = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "path,body,count",
    [
        ("completions", {"prompt": ["x"] * 4, "n": 2, "max_tokens": 30, "logprobs": 4}, 4 * 2 * 30 * 5),
        ("completions", {"prompt": "x" * 400, "max_tokens": 0, "logprobs": 2, "echo": True}, 400 * 3),
        ("chat/completions", {"messages": USER, "n": 4, "logprobs": True, "top_logprobs": 9, "max_tokens": 30}, 1200),
    ],
)
def test_logprobs_are_bounded_over_choices_and_tokens(ask: Any, path: str, body: dict[str, Any], count: int) -> None:
    for most, status in ((count, 200), (count - 1, 400)):
        client = ask(engine=Scripted(answer), max_logprobs=most)
        got = client.post(f"/v1/{path}", json={"model": "m", **body})
        assert got.status_code == status, got.text
    assert f"{count:,}" in got.json()["error"]["message"] and f"{count - 1:,}" in got.json()["error"]["message"]
    assert got.json()["error"]["param"] == "logprobs"


@pytest.mark.parametrize("path", ["completions", "chat/completions", "embeddings"])
def test_a_long_answer_is_written_in_a_thread_and_is_the_same(
    ask: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body: dict[str, Any] = {"model": "plain", "temperature": 0, "max_tokens": 8, "logprobs": 3, "prompt": "the sea"}
    if path == "chat/completions":
        body |= {"logprobs": True, "top_logprobs": 3, "messages": USER}
        del body["prompt"]
    if path == "embeddings":
        body = {"model": "plain", "input": ["the sea", "rain"]}
    threads: list[str] = []
    write = response_format.to_json

    def recorded(value: Any, **options: Any) -> bytes:
        threads.append(threading.current_thread().name)
        return write(value, **options)

    monkeypatch.setattr(response_format, "to_json", recorded)
    short, long = [], []
    for most, answers in ((10**6, short), (0, long)):
        monkeypatch.setattr(response_format, "MAX_INLINE_ITEMS", most)
        got = ask().post(f"/v1/{path}", json=body)
        assert got.headers["content-type"] == "application/json"
        answers.append({k: v for k, v in got.json().items() if k not in ("id", "created", "usage")})
    assert short == long
    assert len(threads) == 1 and "MainThread" not in threads


def test_an_answer_without_logprobs_keeps_no_tokens(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text is all that grows with its length."""
    held: list[int] = []
    complete = response_format.ResponseFormat._complete

    def recorded(self: Any, deltas: Any, job: Any) -> Any:
        held.append(sum(len(delta.entries) for each in deltas for delta in each))
        return complete(self, deltas, job)

    monkeypatch.setattr(response_format.ResponseFormat, "_complete", recorded)
    client = ask(engine=Scripted(answer))
    for more in ({}, {"logprobs": 0}, {"confidence": True}):
        assert client.post("/v1/completions", json={"model": "m", "prompt": "x", **more}).status_code == 200
    for more in ({}, {"logprobs": False}, {"logprobs": True}):
        body = {"model": "m", "messages": USER, **more}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert [bool(each) for each in held] == [False, True, True, False, False, True]


def test_a_place_is_held_until_the_work_ends() -> None:
    """Not only until nobody waits for it: a client that hangs up and asks again has two at work."""
    api = Api(Scripted(answer), Settings(max_background=2), Metrics(dict))  # type: ignore[arg-type]
    release, ended = threading.Event(), threading.Event()

    def work() -> None:
        assert release.wait(60)

    async def run() -> None:
        for _ in range(2):
            waiting = asyncio.ensure_future(api.in_thread(work))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert api.background_count == 2
        with pytest.raises(HttpError) as caught:
            await api.in_thread(work)
        assert caught.value.status == 429
        release.set()
        while api.background_count:
            await asyncio.sleep(0.001)
        assert await api.in_thread(lambda: 5) == 5
        with pytest.raises(ZeroDivisionError):
            await api.in_thread(lambda: 1 // 0)
        ended.set()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert ended.is_set() and api.background_count == 0
    api.close()


def test_schemas_that_take_long_leave_places_for_others() -> None:
    api = Api(Scripted(answer), Settings(max_background=4), Metrics(dict))  # type: ignore[arg-type]
    release = threading.Event()

    def work() -> bool:
        return release.wait(60)

    async def run() -> None:
        compiled = partial(api.in_thread, work)
        compiling = [asyncio.ensure_future(api.compiling.run(client, compiled)) for client in "abcd"]
        while api.background_count < 2:
            await asyncio.sleep(0.001)
        assert await api.in_thread(lambda: 5) == 5
        assert api.background_count == 2  # the others wait
        release.set()
        assert await asyncio.gather(*compiling) == [True] * 4

    asyncio.run(asyncio.wait_for(run(), 60))
    assert api.background_count == 0
    api.close()


def test_a_report_holds_up_others_for_no_longer_than_a_prompt_does(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass of bounded length is read between steps; what is made of it is made in another thread."""
    begun, release = threading.Event(), threading.Event()
    report_of = state.report_of

    def held(*arguments: Any, **options: Any) -> Any:
        begun.set()
        assert release.wait(60)
        return report_of(*arguments, **options)

    monkeypatch.setattr(state, "report_of", held)
    reports: list[Any] = []
    with (
        AsyncEngine([LoadedModel.load(checkpoints / "plain")]) as engine,
        Server(engine, Settings()) as server,
        httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client,
    ):

        def post() -> None:
            body = {"model": "plain", "text": "the sea " * 100}
            reports.append(httpx.post(f"{server.url}/api/introspect", json=body, timeout=60, trust_env=False).json())

        sender = threading.Thread(target=post)
        sender.start()
        try:
            assert begun.wait(60)
            body = {"model": "plain", "prompt": "x", "max_tokens": 3}
            assert client.post("/v1/completions", json=body).status_code == 200
            assert not reports
        finally:
            release.set()
            sender.join(60)
    (report,) = reports
    assert len(report["tokens"]) == state.MOST_EXAMINED == engine.engine.config.max_prefill_tokens
    assert report["left_out"] == 800 - state.MOST_EXAMINED


def test_a_report_counts_as_a_request(engine: AsyncEngine) -> None:
    """It waits with the others, is refused when too many do, and one that is given up is not made."""
    begun, release = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert release.wait(60)

    holding = engine.call(hold)
    try:
        assert begun.wait(60)
        admission, made = engine.engine.admission, []
        future = engine.with_model("plain", [1, 2], lambda model: made.append(1), "a" * 32)
        assert admission.num_waiting == 1
        admission.max_owned = 1
        with pytest.raises(Busy, match="API key"):
            engine.with_model("plain", [1, 2], lambda model: None, "a" * 32)
        other = engine.with_model("plain", [1, 2], lambda model: made.append(2), "b" * 32)
        assert future.cancel() and admission.num_waiting == 1
    finally:
        engine.engine.admission.max_owned = None
        release.set()
    holding.result(60)
    other.result(60)
    engine.call(lambda: None).result(60)
    assert made == [2] and admission.num_waiting == 0 and not admission._owned


def test_a_long_answer_is_written_in_parts_that_are_the_same_json() -> None:
    long = [{"a": float(i), "b": [i, None, "é\n"]} for i in range(2500)]
    for value in (
        {
            "choices": [{"content": long, "none": None}, {"content": [], "empty": {}}],
            "nan": math.nan,
            "é": [[1, 2], []],
        },
        [],
        {},
        long,
        "text",
    ):
        parts = list(json_parts(value))
        assert b"".join(parts) == to_json(value, inf_nan_mode="null")
        assert max(map(len, parts)) < 60_000


def test_events_that_are_there_give_way_to_other_requests() -> None:
    """A queue that is not empty does not suspend its reader."""

    async def run() -> None:
        api = Api(Scripted(answer), Settings(), Metrics(dict))  # type: ignore[arg-type]
        job, others = EngineJob(api, [Request("m", (1,), max_tokens=0)]), 0
        for _ in range(4 * MAX_UNINTERRUPTED):
            job._events.put_nowait((0, PromptLogprob(1, None)))

        async def other() -> None:
            nonlocal others
            while True:
                others += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        events = job.events()
        for _ in range(4 * MAX_UNINTERRUPTED):
            await anext(events)
        task.cancel()
        assert others >= 4
        api.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_long_texts_wait_for_their_senders_turn() -> None:
    """More texts at once than there are places: none is refused, and a second sender's is read before most of them."""
    api = Api(Scripted(answer), Settings(max_background=4), Metrics(dict))  # type: ignore[arg-type]
    order: list[str] = []

    async def read(sender: str) -> None:
        SENDER.set(sender)
        await api.tokenize(lambda: order.append(sender))

    async def run() -> None:
        flood = [asyncio.create_task(read("many")) for _ in range(60)]
        await asyncio.gather(*flood, asyncio.create_task(read("one")))

    asyncio.run(asyncio.wait_for(run(), 60))
    assert len(order) == 61 and order.index("one") < 10
    api.close()
