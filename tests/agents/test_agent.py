"""Agents with a tiny model of random weights, whose first answer must be a call."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from synthe_core.agents.agent import Agent, CallMade, ResultRead
from synthe_core.agents.run import AgentLimits
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from tests.evaluation.models import saved
from tests.serving.api.conftest import CHATML

USER = [{"role": "user", "content": "go"}]


class Pick:
    name, description = "pick", "Picks one."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"x": {"enum": [1, 2, 3]}},
        "required": ["x"],
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self.picked: list[Any] = []

    def run(self, arguments: Mapping[str, Any], cancelled: threading.Event) -> str:
        self.picked.append(arguments["x"])
        return f"picked {arguments['x']}"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncEngine]:
    folder: Path = tmp_path_factory.mktemp("agent")
    saved(folder / "m")
    model = LoadedModel.load(folder / "m")
    model.tokenizer.chat_template = CHATML
    with AsyncEngine([model], max_num_seqs=8) as engine:
        yield engine


def test_calls_are_made_and_their_results_read(engine: AsyncEngine) -> None:
    tool = Pick()
    agent = Agent(engine, "m", [tool], limits=AgentLimits(steps=2), max_tokens=400, required=True)
    attempt = agent.attempt(USER, seed=3)
    events = []
    while True:
        try:
            events.append(next(attempt))
        except StopIteration as end:
            run = end.value
            break
    made = [event.call for event in events if isinstance(event, CallMade)]
    read = [event.text for event in events if isinstance(event, ResultRead)]
    assert made and [json.loads(call.arguments)["x"] for call in made] == tool.picked
    assert read == [f"picked {x}" for x in tool.picked]
    assert run.messages[0] == USER[0] and run.messages[1]["tool_calls"][0]["function"]["name"] == "pick"
    assert run.num_steps == 2 and run.ending in ("answer", "length", "steps")


def test_attempts_share_the_prompt(engine: AsyncEngine) -> None:
    agent = Agent(engine, "m", [Pick()], limits=AgentLimits(steps=1), max_tokens=120, required=True)
    user = [{"role": "user", "content": "share this"}]
    before = engine.engine.metrics.prompt_tokens
    first, *others = agent.run(user, attempts=4, seed=1)
    assert {run.num_prompt_tokens for run in others} == {first.num_prompt_tokens}
    assert engine.engine.metrics.prompt_tokens - before <= first.num_prompt_tokens  # computed once
    assert len({json.dumps(run.transcript()) for run in (first, *others)}) > 1
    assert all(run.mean_logprob < 0 for run in (first, *others))


def test_an_interrupt_ends_all_attempts(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(engine, "m", [], max_tokens=2000)
    last = agent._last

    def interrupted(messages: Any, seed: int, cancelled: threading.Event) -> Any:
        if seed == 0:
            raise KeyboardInterrupt
        return last(messages, seed, cancelled)

    monkeypatch.setattr(agent, "_last", interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.run(USER, attempts=3)
    assert engine.call(lambda: engine.engine.has_unfinished).result() is False


def test_a_cancelled_attempt_says_so(engine: AsyncEngine) -> None:
    cancelled = threading.Event()
    cancelled.set()
    attempt = Agent(engine, "m", [], max_tokens=2000).attempt(USER, cancelled=cancelled)
    with pytest.raises(StopIteration) as end:
        next(attempt)
    assert end.value.value.ending == "cancelled"


def test_an_attempt_that_is_closed_cancels_its_request(engine: AsyncEngine) -> None:
    attempt = Agent(engine, "m", [], max_tokens=2000).attempt(USER)
    next(attempt)
    attempt.close()
    assert engine.call(lambda: engine.engine.has_unfinished).result() is False
