"""The layouts of chat and preference data."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from synthe_core.data.conversations.rows import Conversation, Preference, Rating, parse
from synthe_core.errors import InputError
from tests.paths import SHARED

Q, A = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [Q, A]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}, A | {"tool_calls": None}]},
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        {"instruction": "2 + 2?", "input": "", "output": "4"},
        {"instruction": "2 + 2?", "output": "4", "history": []},
        {"prompt": "2 + 2?", "completion": "4"},
        {"prompt": [Q], "completion": [A]},
        {"question": "2 + 2?", "answer": "4"},
    ],
)
def test_one_conversation_in_every_layout(row: dict[str, Any]) -> None:
    assert parse(row, "row 1") == Conversation([Q, A])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"chosen": [Q, A], "rejected": [Q, WRONG]},
        {"prompt": "2 + 2?", "chosen": [Q, A], "rejected": [Q, WRONG]},
        {
            "conversations": [{"from": "human", "value": "2 + 2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        {
            "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4",
            "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5",
        },
    ],
)
def test_one_preference_in_every_layout(row: dict[str, Any]) -> None:
    assert parse(row, "row 1") == Preference([Q], [A], [WRONG])


def test_ratings_histories_systems_and_tools() -> None:
    assert parse({"prompt": "2 + 2?", "completion": "4", "label": True}, "r") == Rating([Q], [A], True)
    assert parse({"prompt": [Q], "response": "5", "label": 0}, "r") == Rating([Q], [WRONG], False)
    row = {"instruction": "Again", "input": "now", "output": "4", "history": [["2 + 2?", "4"]], "system": "Brief."}
    assert [each["content"] for each in parse(row, "r").messages] == ["Brief.", "2 + 2?", "4", "Again\nnow", "4"]
    call = {"from": "function_call", "value": '{"name": "now", "arguments": {"zone": "UTC"}}'}
    turns = [
        {"from": "human", "value": "time?"},
        call,
        {"from": "observation", "value": "12"},
        {"from": "gpt", "value": "12"},
    ]
    read = parse({"conversations": turns, "tools": '[{"type": "function"}]'}, "r")
    assert read.tools == [{"type": "function"}]
    assert [each["role"] for each in read.messages] == ["user", "assistant", "tool", "assistant"]
    function = {"name": "now", "arguments": {"zone": "UTC"}}
    assert read.messages[1]["tool_calls"] == [{"type": "function", "function": function}]
    thought = [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "4"}]
    answer = parse({"messages": [Q, {"role": "assistant", "content": thought}]}, "r").messages[1]
    assert answer == A | {"reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "row 1: a row is an object"),
        ({"text": "x", "id": 1}, "row 1: the row has text, id, which is no layout of conversations"),
        ({"messages": []}, "row 1: a conversation is a list of messages, not an empty list"),
        ({"messages": [Q, {"role": "asistant", "content": "4"}]}, 'row 1, message 2: role is "asistant"'),
        ({"messages": [Q]}, "row 1: there is no message of the assistant"),
        ({"messages": [Q, A | {"content": " \n"}]}, "row 1: answer 1 of the assistant is empty"),
        (
            {"messages": [Q, A | {"content": 4}]},
            "row 1, message 2: the content is a text or a list of parts, not a number",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, A]}, 'row 1, message 1: part 1 is "image"'),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "row 1: chosen and rejected are the same"),
        ({"chosen": "a", "rejected": "b"}, "row 1: chosen and rejected have no prompt in common"),
        ({"prompt": "x", "chosen": "a", "rejected": ""}, "row 1, rejected: answer 1 of the assistant is empty"),
        ({"prompt": "x", "completion": "a", "label": "good"}, "row 1: label is 'good', and should be true or false"),
        ({"prompt": "x", "completion": "", "label": True}, "row 1: the answer is empty"),
        ({"conversations": [{"from": "function_call", "value": "{"}]}, "row 1, message 1: not JSON"),
        ({"messages": [Q, A], "tools": "{}"}, "row 1: tools are a list"),
    ],
)
def test_what_is_wrong_is_named(row: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(row, "row 1")
    assert str(caught.value).startswith(message), caught.value


def rows(path: Path) -> list[Any]:
    if path.suffix == ".json":
        return list(json.loads(path.read_text()))
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.splitlines() if line.strip()]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not there")
@pytest.mark.parametrize(
    ("name", "kind", "count", "refused"),
    [
        ("instruct/alpaca_en_demo.json", "Conversation", 999, 0),
        ("instruct/dolly_hhrlhf_train_small.jsonl", "Conversation", 1000, 0),
        ("instruct/glaive_toolcall_en_demo.json", "Conversation", 300, 0),
        ("instruct/reason_tool_use_demo_50.jsonl", "Conversation", 50, 0),
        ("preference/dpo_en_demo.json", "Preference", 300, 0),
        ("preference/hh_harmless_half.jsonl.gz", "Preference", 1154, 2),  # two have an empty answer
    ],
)
def test_real_data(name: str, kind: str, count: int, refused: int) -> None:
    kinds: Counter[str] = Counter()
    for number, row in enumerate(rows(SHARED / "data" / name), start=1):
        try:
            kinds[type(parse(row, f"{name}, row {number}")).__name__] += 1
        except InputError:
            kinds["refused"] += 1
    assert kinds == Counter({kind: count, "refused": refused})
