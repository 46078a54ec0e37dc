"""What `data stats` counts of conversations, preferences and ratings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from synthe_core.data.conversations import statistics as module
from synthe_core.data.conversations.rows import layout_of
from synthe_core.data.conversations.statistics import holds_conversations, statistics
from synthe_core.data.spec import DataSpec
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Progress, Result
from tests.data.test_training_text import CHATML, tokenizer

QUESTION = {"role": "user", "content": "What?"}
ANSWER = {"role": "assistant", "content": "That, and more."}
CHAT = {"messages": [QUESTION, ANSWER]}
PAIR = {"prompt": "What?", "chosen": "That.", "rejected": "I know, but I will not say."}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def count(path: Path, made: Tokenizer | None = None, **keys: Any) -> dict[str, Any]:
    spec = DataSpec.model_validate({"sources": str(path)} | keys)
    (result,) = [event for event in statistics(spec, made) if isinstance(event, Result)]
    return result.values


def test_rows_by_layout_and_why_others_are_skipped(tmp_path: Path) -> None:
    empty = {"messages": [QUESTION, {"role": "assistant", "content": " "}]}
    alpaca = {"instruction": "Add.", "input": "1 2", "output": "3"}
    rows = [CHAT, CHAT, alpaca, empty, {"foo": 1}, {**empty}, 7]
    (values,) = count(write(tmp_path / "c.jsonl", rows))["sources"]
    assert (values["rows"], values["used"], values["skipped"]) == (7, 3, 4)
    assert values["layouts"] == {"messages": 2, "instruction, output": 1}
    assert values["roles"] == {"user": 3, "assistant": 3}
    assert [(each["rows"], each["reason"]) for each in values["reasons"]] == [
        (2, "answer N of the assistant is empty"),
        (1, "the row has foo, which is no layout of conversations"),
        (1, "a row is an object with messages, not a int"),
    ]
    assert values["reasons"][0]["first"].startswith(f"{tmp_path / 'c.jsonl'}, line 4: ")
    assert (values["duplicates"], values["repeated_prompts"]) == (1, 1)
    assert values["lengths"]["answers"] == {"mean": 10.3, "median": 15, "95th": 15, "longest": 15}
    assert values["trained_share"] == round(31 / (31 + 5 + 5 + 8), 4) and "fit" not in values


def test_tokens_are_those_that_the_model_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer(CHATML)
    path = write(tmp_path / "c.jsonl", [CHAT, {"messages": [QUESTION, {**ANSWER, "content": "x" * 50}]}])
    exact = len(made.encode_marked("<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"))
    answers = [len(made.encode_marked(text)) + 1 for text in ("That, and more.", "x" * 50)]
    monkeypatch.setattr(module, "FITS", (exact + answers[0], 1000))
    values = count(path, made)
    assert values["unit"] == "tokens"
    (values,) = values["sources"]
    ends = len(made.encode_marked("\n"))
    assert values["lengths"]["prompts"]["longest"] == exact + ends and values["lengths"]["answers"]["longest"] == max(
        answers
    )
    assert values["lengths"]["texts"]["median"] == exact + answers[0] + ends
    assert values["fit"] == {str(exact + answers[0]): 1, "1000": 2}


def test_a_template_that_renders_no_answer_is_a_reason(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    row = {"messages": [QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": [call]}
    path = write(tmp_path / "c.jsonl", [CHAT, row])
    assert count(path)["sources"][0]["tool_calls"] == 1
    (values,) = count(path, tokenizer(CHATML + "{# tools, tool_calls #}"))["sources"]
    assert values["skipped"] == 1 and "it writes nothing of its tool calls" in values["reasons"][0]["reason"]
    assert "line 2" in values["reasons"][0]["first"]


def test_preferences_show_a_bias_of_length(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "prompt": "Why?"}, {**PAIR, "chosen": "x" * 99}]
    (values,) = count(write(tmp_path / "p.jsonl", rows))["sources"]
    assert values["kinds"] == {"preferences": 3} and values["chosen_longer"] == round(1 / 3, 4)
    assert values["lengths"]["chosen"]["longest"] == 99 and values["lengths"]["rejected"]["median"] == 27
    assert values["repeated_prompts"] == 1


def test_ratings_count_what_is_good(tmp_path: Path) -> None:
    row = {"prompt": "What?", "completion": "That.", "label": True}
    (values,) = count(write(tmp_path / "r.jsonl", [row, {**row, "label": "false"}]))["sources"]
    assert (values["kinds"], values["good"], values["duplicates"]) == ({"ratings": 2}, 1, 0)
    assert values["layouts"] == {"prompt, completion, label": 2}


def test_prompts_that_are_in_both_splits(tmp_path: Path) -> None:
    other = {"messages": [{"role": "user", "content": "Else?"}, ANSWER]}
    held_out = write(tmp_path / "v.jsonl", [{"messages": [QUESTION, {**ANSWER, "content": "No."}]}])
    train, validation = count(write(tmp_path / "c.jsonl", [CHAT, other, CHAT]), validation=str(held_out))["sources"]
    assert train["in_both_splits"] == 2 and (train["split"], validation["split"]) == ("train", "validation")


def test_a_source_without_a_usable_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can be used; the first: .*line 1: the row has foo"):
        count(write(tmp_path / "c.jsonl", [{"foo": 1}]))


def test_tables_of_text_are_text(tmp_path: Path) -> None:
    assert holds_conversations(str(write(tmp_path / "c.jsonl", [CHAT])), "text")
    assert holds_conversations(str(tmp_path), "text")
    assert not holds_conversations(str(write(tmp_path / "t.jsonl", [{"text": "prose", **CHAT}])), "text")
    assert not holds_conversations(str(write(tmp_path / "u.jsonl", [{"foo": 1}])), "text")
    assert not holds_conversations("stdlib", "text") and not holds_conversations("nowhere.jsonl", "text")
    (tmp_path / "a.md").write_text("prose")
    assert not holds_conversations(str(tmp_path), "text")


def test_progress_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "monotonic", iter(range(100)).__next__)
    path = write(tmp_path / "c.jsonl", [CHAT] * 3)
    spec = DataSpec.model_validate({"sources": str(path)})
    shown = [event for event in statistics(spec) if isinstance(event, Progress)]
    assert [(event.done, event.total, event.eta) for event in shown] == [(3, 3, 0.0)]


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        ({"instruction": "a", "output": "b", "input": ""}, "instruction, output"),
        ({"prompt": "a", "response": "b"}, "prompt, response"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, "chosen, rejected"),
        ({"text": "a"}, None),
        ({"prompt": "a"}, None),
    ],
)
def test_layouts_have_names(row: dict[str, Any], layout: str | None) -> None:
    assert layout_of(row) == layout
