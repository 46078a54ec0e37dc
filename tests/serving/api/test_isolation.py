"""A request that cannot be served says why, and the streams beside it go on as if it had not come."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest

RECURSIVE = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False}
PATTERNS = [{"pattern": f"^(.*{letter}.{{{n}}}|[^{letter}]*)*$"} for n, letter in enumerate("abcdefghijklmnopqrstuvwx")]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "overflow": ({"logit_bias": {"65": 1e39}}, "logit_bias.65"),
    "above": ({"logit_bias": {"65": 100.5}}, "logit_bias.65"),
    "below": ({"logit_bias": {"65": 1, "66": -101}}, "logit_bias.66"),
    "no token": ({"logit_bias": {"9999": 5}}, "logit_bias"),
    "itself": ({"schema": {"$ref": "#"}}, "no JSON of finite length"),
    "recursive": ({"schema": RECURSIVE}, "no JSON of finite length"),
    "repeats": ({"schema": {"type": "string", "pattern": "^(a{1000}){1000}$"}}, "JSON schema is invalid"),
    "patterns": ({"schema": {"type": "string", "allOf": PATTERNS}}, "too much time or memory"),
}


def text(client: openai.OpenAI, seed: int) -> str:
    """The text of a stream that nothing but its length ends."""
    extra = {"ignore_eos": True}
    stream = client.completions.create(
        model="plain", prompt="abc", max_tokens=200, seed=seed, stream=True, extra_body=extra
    )
    return "".join(chunk.choices[0].text for chunk in stream)


@pytest.mark.parametrize("name", list(REFUSED))
def test_streams_go_on_beside_a_request_that_is_refused(client: openai.OpenAI, name: str) -> None:
    body, message = REFUSED[name]
    expected = [text(client, seed) for seed in range(3)]
    streams = [
        client.completions.create(
            model="plain", prompt="abc", max_tokens=200, seed=seed, stream=True, extra_body={"ignore_eos": True}
        )
        for seed in range(3)
    ]
    texts = [next(iter(stream)).choices[0].text for stream in streams]
    with pytest.raises(openai.BadRequestError) as refused:
        if "schema" in body:
            pytest.importorskip("llguidance")
            response_format: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": body["schema"]}}
            message_of_user: Any = [{"role": "user", "content": f"q{time.monotonic()}"}]
            client.chat.completions.create(
                model="chatty", messages=message_of_user, max_tokens=20, response_format=response_format
            )
        else:
            client.completions.create(model="plain", prompt="new", max_tokens=3, **body)
    assert message in refused.value.message and "\n" not in refused.value.message
    for index, stream in enumerate(streams):
        texts[index] += "".join(chunk.choices[0].text for chunk in stream)
    assert texts == expected


def test_sixteen_long_stop_strings_change_nothing(client: openai.OpenAI) -> None:
    stops = ["abc" * 330 + letter for letter in "abcdefghijklmnop"]
    plain = client.completions.create(
        model="plain", prompt="abc", max_tokens=50, seed=1, extra_body={"ignore_eos": True}
    )
    stopped = client.completions.create(
        model="plain", prompt="abc", max_tokens=50, seed=1, extra_body={"ignore_eos": True, "stop": stops}
    )
    assert plain.choices[0].text == stopped.choices[0].text
