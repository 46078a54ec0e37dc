"""Random conversations, as clients send them: system, tool and multi-part messages, empty, long and odd texts."""

from __future__ import annotations

import random
from typing import Any

TEXTS = [
    "", " ", "hé {{ x }} <|im_end|> \"'&<b>", " yo\n", "\n\nlead", "trail \t", "日本語 🙂\u200d👩",
    "a\u0301 á \ufb01 \u2581x",
    "<think>\nhm\n</think>\n\nso", "{% if %}", "1234567 3.14", "</s><s> [INST]", "\r\n\ttab", "I'll we'RE  don't",
    "x" * 3000, "word " * 500, "<tool_response>y</tool_response>", "\u00a0\u2028\ufeff", "𝔘𝔫𝔦 ÅÄÖ ß",
    "def f(x):\n    return x  # ok",
]  # fmt: skip
PARAMETERS = {"type": "object", "properties": {"ort": {"type": "string", "description": "<é>"}}, "required": ["ort"]}
TOOLS = [
    {"type": "function", "function": {"name": "wetter", "description": 'of "now"', "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "time", "description": "", "parameters": {}, "strict": None, "n": 1.5}},
]


def conversations(count: int, seed: int = 0, *, parts: bool = False) -> list[dict[str, Any]]:
    """`count` of them, each with `messages`, `tools` (or None) and `answer`: whether a reply is to follow.

    parts: some messages have a list of parts as their content.
    """
    draw = random.Random(seed)
    return [_conversation(draw, parts) for _ in range(count)]


def _conversation(draw: random.Random, parts: bool) -> dict[str, Any]:
    tools = draw.choice([None, None, TOOLS, TOOLS[:1], []])
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.5:
        messages.append({"role": "system", "content": _content(draw, parts)})
    for _ in range(draw.randint(1, 4)):
        messages.append({"role": "user", "content": _content(draw, parts)})
        if draw.random() < 0.2:
            messages[-1]["name"] = "Zoë"
        if draw.random() < 0.3:
            calls = [_call(draw) for _ in range(draw.randint(1, 2))]
            messages.append({"role": "assistant", "content": draw.choice([None, "", "so"]), "tool_calls": calls})
            messages += [{"role": "tool", "tool_call_id": each["id"], "content": _text(draw)} for each in calls]
        if draw.random() < 0.8:
            messages.append({"role": "assistant", "content": _content(draw, parts)})
            if draw.random() < 0.3:
                messages[-1][draw.choice(["reasoning_content", "reasoning", "thinking"])] = _text(draw)
            if draw.random() < 0.2:
                messages[-1] |= {"tool_calls": None, "refusal": None}
    return {"messages": messages, "tools": tools, "answer": draw.random() < 0.7}


def _text(draw: random.Random) -> str:
    return "".join(draw.choices(TEXTS, k=draw.choice([1, 1, 2])))


def _content(draw: random.Random, parts: bool) -> Any:
    if not parts or draw.random() < 0.5:
        return _text(draw)
    return [{"type": "text", "text": _text(draw)} for _ in range(draw.randint(1, 3))]


def _call(draw: random.Random) -> dict[str, Any]:
    arguments = draw.choice([{"ort": "Zürich"}, {}, {"n": [1, None, 2.5], "ok": True}])
    return {
        "id": f"{draw.getrandbits(36):09x}",
        "type": "function",
        "function": {"name": "wetter", "arguments": arguments},
    }
