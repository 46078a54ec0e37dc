"""Rows of chat and preference data in the layouts that are in use, recognised by their keys.

conversation   messages (OpenAI) | conversations (ShareGPT) | instruction, input, output, history (Alpaca)
               | prompt, completion | prompt, response
preference     chosen and rejected: texts, messages or lists of them; the prompt apart (`prompt`, `messages`,
               `conversations`, `question`, `instruction`), or inside both; Anthropic's texts of Human and Assistant
rating         prompt, completion and a label, true or false (KTO)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from synthe_core.data.conversations.messages import (
    Message,
    check_answers,
    has_answer,
    message_of,
    messages_of,
    tools_of,
)
from synthe_core.errors import InputError

TURN = re.compile(r"\n\n(Human|Assistant):")
"""Where a turn of Anthropic's texts begins."""
LISTS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "question", "instruction")
ANSWERS = ("completion", "response", "answer", "output")
LAYOUTS = "messages, conversations, instruction/output, prompt/completion, chosen/rejected, or prompt/completion/label"


class Conversation(NamedTuple):
    """Messages with at least one answer of the assistant, and the tools that it may call."""

    messages: list[Message]
    tools: list[Any] | None = None


class Preference(NamedTuple):
    """Two answers to `prompt`, the first the better one."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[Any] | None = None


class Rating(NamedTuple):
    """An answer to `prompt`, and whether it is a good one."""

    prompt: list[Message]
    answer: list[Message]
    good: bool
    tools: list[Any] | None = None


def parse(row: Any, place: str) -> Conversation | Preference | Rating:
    """What a row holds. InputError names the row and its keys where it has none of the layouts."""
    if not isinstance(row, dict):
        raise InputError(f"{place}: a row is an object with messages, not a {type(row).__name__}")
    tools = tools_of(row.get("tools"), place)
    if "chosen" in row and "rejected" in row:
        return _preference(row, tools, place)
    if row.get("label") is not None and _answer_key(row) is not None:
        return _rating(row, tools, place)
    messages = _conversation(row, place)
    check_answers(messages, place)
    return Conversation(messages, tools)


def layout_of(row: Mapping[str, Any]) -> str | None:
    """The keys by which `parse` recognises a row, None for none that it knows."""
    if "chosen" in row and "rejected" in row:
        return "chosen, rejected"
    question = next((key for key in (*LISTS, *PROMPTS) if row.get(key) is not None), None)
    answer = _answer_key(row)
    if row.get("label") is not None and answer is not None:
        return f"{question}, {answer}, label"
    if question in LISTS or question is None:
        return question
    return None if answer is None else f"{question}, {answer}"


def _conversation(row: Mapping[str, Any], place: str) -> list[Message]:
    system = row.get("system")
    before: list[Message] = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    for key in LISTS:
        if row.get(key) is not None:
            return before + messages_of(row[key], place)
    answer = _answer_key(row)
    if answer is None or (prompt := _prompt(row, place)) is None:
        raise InputError(f"{place}: the row has {_keys(row)}, which is no layout of conversations", f"known: {LAYOUTS}")
    return before + prompt + message_of(row[answer], "assistant", place)


def _answer_key(row: Mapping[str, Any]) -> str | None:
    return next((key for key in ANSWERS if row.get(key) is not None), None)


def _prompt(row: Mapping[str, Any], place: str) -> list[Message] | None:
    """The messages before an answer that is stored apart, None where the row has none."""
    for key in LISTS:
        if row.get(key) is not None:
            return messages_of(row[key], place)
    question = next((row[key] for key in PROMPTS if row.get(key) is not None), None)
    if question is None:
        return None
    if not isinstance(question, str):
        return messages_of(question, place)
    more = row.get("input")
    question = f"{question}\n{more}" if isinstance(more, str) and more else question
    return [*_history(row.get("history"), place), {"role": "user", "content": question}]


def _history(value: Any, place: str) -> list[Message]:
    """Alpaca's earlier turns: pairs of a question and its answer."""
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise InputError(f"{place}: history is a list of pairs, a question and its answer")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in value for role, text in zip(roles, pair, strict=True)]


def _preference(row: Mapping[str, Any], tools: list[Any] | None, place: str) -> Preference:
    sides = [_side(row[key], f"{place}, {key}") for key in ("chosen", "rejected")]
    prompt = _prompt(row, place)
    if prompt is None or sides[0][: len(prompt)] == prompt:
        equal = [one == other for one, other in zip(*sides, strict=False)]
        common = equal.index(False) if False in equal else len(equal)
        prompt, sides = sides[0][:common], [side[common:] for side in sides]
    if sides[0] == sides[1]:
        raise InputError(f"{place}: chosen and rejected are the same", "leave the row out")
    if not prompt:
        raise InputError(f"{place}: chosen and rejected have no prompt in common", "give the row a `prompt`")
    for key, side in zip(("chosen", "rejected"), sides, strict=True):
        check_answers(side, f"{place}, {key}")
    return Preference(prompt, sides[0], sides[1], tools)


def _side(value: Any, place: str) -> list[Message]:
    """One of the two: an answer, or a whole conversation."""
    if isinstance(value, str) and TURN.match(value):
        parts = TURN.split(value)[1:]
        roles = {"Human": "user", "Assistant": "assistant"}
        turns = zip(parts[::2], parts[1::2], strict=True)
        return [{"role": roles[who], "content": text.strip()} for who, text in turns]
    return message_of(value, "assistant", place)


def _rating(row: Mapping[str, Any], tools: list[Any] | None, place: str) -> Rating:
    label, key = row["label"], _answer_key(row)
    good = {"true": True, "false": False, "1": True, "0": False}.get(str(label).lower())
    if good is None:
        raise InputError(f"{place}: label is {label!r}, and should be true or false")
    prompt = _prompt(row, place)
    if prompt is None or key is None:
        raise InputError(f"{place}: the row has {_keys(row)}, and a rating needs a prompt", f"known: {LAYOUTS}")
    answer = message_of(row[key], "assistant", place)
    if not has_answer(answer[-1]):
        raise InputError(f"{place}: the answer is empty", "leave the row out")
    return Rating(prompt, answer, good, tools)


def _keys(row: Mapping[str, Any]) -> str:
    names = [str(key)[:40] for key in row]
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "no keys"
