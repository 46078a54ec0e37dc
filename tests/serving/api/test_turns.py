"""Turns: one client's slow work does not keep another's waiting, and is not refused for having to wait."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from functools import partial
from typing import Any

import pytest

from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.turns import Turns


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_a_client_waits_for_itself_and_not_for_others() -> None:
    done: list[str] = []

    async def scenario() -> None:
        turns, gate = Turns(at_once=2, most=20), asyncio.Event()

        async def slow(name: str) -> None:
            await gate.wait()
            done.append(name)

        async def fast() -> int:
            return 5

        slow_ones = [asyncio.ensure_future(turns.run("a", partial(slow, f"a{i}"))) for i in range(8)]
        await asyncio.sleep(0)
        assert [await turns.run("b", fast) for _ in range(8)] == [5] * 8
        assert done == []
        gate.set()
        await asyncio.gather(*slow_ones)
        assert done == [f"a{i}" for i in range(8)]

    run(scenario())


def test_what_waits_is_bounded_in_all_and_of_each_client() -> None:
    async def scenario() -> None:
        turns, gate = Turns(at_once=1, most=4), asyncio.Event()
        running = [asyncio.ensure_future(turns.run(each, gate.wait)) for each in "aabc"]
        await asyncio.sleep(0)
        for client in "ad":  # its own half, and all
            with pytest.raises(HttpError) as caught:
                await turns.run(client, gate.wait)
            assert caught.value.status == 429
        gate.set()
        assert await asyncio.gather(*running) == [True] * 4
        assert await turns.run("a", gate.wait)

    run(scenario())


def test_work_that_nobody_waits_for_is_dropped_before_it_begins_and_keeps_its_turn_afterwards() -> None:
    begun: list[str] = []

    async def scenario() -> None:
        turns, gate = Turns(at_once=1, most=8), asyncio.Event()

        async def work(name: str) -> None:
            begun.append(name)
            await gate.wait()

        first, second, third = (asyncio.ensure_future(turns.run(each, partial(work, each))) for each in "abc")
        while not begun:
            await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert begun == ["a"] and second.cancelled() and not first.done()
        gate.set()
        await third
        assert begun == ["a", "c"]

    run(scenario())


def test_a_failure_ends_its_turn() -> None:
    async def scenario() -> None:
        turns = Turns(at_once=1, most=2)

        async def fails() -> None:
            raise ValueError("no")

        for _ in range(3):
            with pytest.raises(ValueError, match="no"):
                await turns.run("a", fails)

    run(scenario())


def test_a_failure_that_nobody_waits_for_is_not_logged() -> None:
    """The log has no traceback for a client that sends a bad schema and hangs up."""
    logged: list[Any] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))
        turns, gate = Turns(at_once=1, most=2), asyncio.Event()

        async def fails() -> None:
            await gate.wait()
            raise ValueError("no")

        waiting = asyncio.ensure_future(turns.run("a", fails))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        del waiting
        gc.collect()

    run(scenario())
    assert logged == []
