"""`synthe chat --tools`, and the conversation behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synthe_core.chat.conversation import ChatOptions
from synthe_core.chat.with_tools import ToolConversation
from synthe_core.data.conversations.rows import parse
from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.sampling_params import SamplingParams
from tests.agents.test_agent import Pick
from tests.evaluation.models import saved
from tests.serving.api.conftest import CHATML

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncEngine]:
    folder: Path = tmp_path_factory.mktemp("chat")
    saved(folder / "m")
    model = LoadedModel.load(folder / "m")
    model.tokenizer.chat_template = CHATML
    with AsyncEngine([model], max_num_seqs=4) as engine:
        yield engine


@pytest.mark.parametrize(
    "options,message",
    [
        (["--tools", "pyhton"], "did you mean 'python'?"),
        (["--tools", "python", "--session", "x"], "--tools and --attempts do not go with --url"),
        (["--tools", "python", "--url", "http://127.0.0.1:1"], "--tools and --attempts do not go with --url"),
        (["--attempts", "2", "--session", "x"], "--tools and --attempts do not go with --url"),
    ],
)
def test_options_that_do_not_fit_are_named(synthe: Run, tmp_path: Path, options: list[str], message: str) -> None:
    result = synthe("chat", str(tmp_path), *options)
    assert result.exit_code == 2 and message in result.stderr


def test_a_turn_has_its_transcript(engine: AsyncEngine, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    conversation = ToolConversation(engine, "m", [Pick()], system="be brief", transcripts=file)
    options = ChatOptions(max_tokens=8, sampling=SamplingParams(temperature=0), seed=1)
    for text in ("one", "two"):
        pieces = "".join(conversation.send(text, options))
        assert pieces == conversation.turns[-1].answer
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [each["role"] for each in rows[1]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert parse(rows[1], "row").tools == rows[1]["tools"]
    with pytest.raises(InputError, match="nothing to keep"):
        conversation.save("x")
    conversation.reset()
    assert conversation.turns == []
    conversation.close()


def test_the_best_of_several_attempts(engine: AsyncEngine, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    conversation = ToolConversation(engine, "m", [Pick()], attempts=3, transcripts=file)
    options = ChatOptions(max_tokens=8, sampling=SamplingParams(temperature=1), seed=1)
    answer = conversation.send("one", options)
    pieces = []
    while True:
        try:
            pieces.append(next(answer))
        except StopIteration as end:
            reply = end.value
            break
    assert "".join(pieces) == reply.text == conversation.turns[-1].answer
    assert 1 <= reply.agreeing <= 3 and reply.tokens > 8 and reply.prompt - reply.cached <= reply.prompt / 3
    (row,) = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert row["messages"][1]["content"] == reply.text
    with pytest.raises(InputError, match="temperature 0"):
        next(conversation.send("two", ChatOptions(sampling=SamplingParams(temperature=0))))
    assert len(conversation.turns) == 1
    conversation.close()


def test_attempts_without_tools(synthe: Run, tmp_path: Path) -> None:
    saved(tmp_path / "m")
    done = synthe("chat", tmp_path / "m", "--attempts", 2, "-n", 4, "--seed", 1, "--json", stdin="hello\n")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["agreeing_attempts"] in (1, 2)
