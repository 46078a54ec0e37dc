"""The limits of an agent, and its transcript."""

from __future__ import annotations

import pytest

from synthe_core.agents.run import AgentCall, AgentLimits, AgentRun
from synthe_core.data.conversations.rows import Conversation, parse

CALL = AgentCall("c1", "add", '{"a": 1}')
USER = {"role": "user", "content": "?"}


def test_it_ends_with_an_answer_without_calls() -> None:
    run = AgentRun([USER], [])
    assert run.check_limits()
    run.add_answer("Let me see.", [CALL], 5)
    run.add_result(CALL, "1")
    assert run.check_limits() and run.text == ""
    run.add_answer("One.", [], 2)
    assert not run.check_limits()
    assert (run.ending, run.text, run.num_steps, run.num_tokens) == ("answer", "One.", 2, 7)
    assert [each["role"] for each in run.transcript()] == ["assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    "limits,ending",
    [(AgentLimits(steps=1), "steps"), (AgentLimits(tokens=5), "tokens"), (AgentLimits(seconds=0.0), "seconds")],
)
def test_limits_end_it(limits: AgentLimits, ending: str) -> None:
    run = AgentRun([USER], [], limits)
    run.add_answer("", [CALL], 5)
    run.add_result(CALL, "1")
    assert not run.check_limits() and run.ending == ending


def test_cancelling_and_cut_answers() -> None:
    run = AgentRun([USER], [])
    assert not run.check_limits(cancelled=True) and run.ending == "cancelled"
    run = AgentRun([USER], [])
    run.add_answer("The", [], 1, cut=True)
    assert run.ending == "length"


def test_a_transcript_is_a_row_to_train_on() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    run = AgentRun([USER], [tool])
    run.add_answer("", [CALL], 5)
    run.add_result(CALL, "1")
    run.add_answer("One.", [], 2)
    read = parse(run.row(), "row 1")
    assert isinstance(read, Conversation) and read.tools == [tool]
    assert read.messages[1]["tool_calls"] == [CALL.json()] and read.messages[2]["content"] == "1"
