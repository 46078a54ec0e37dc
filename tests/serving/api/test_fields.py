"""Fields of other servers: without effect they are accepted, understood, or refused by name."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest

from synthe_core.inference.request import Grammar
from synthe_core.serving.api import bodies
from synthe_core.serving.api.endpoints import ENDPOINTS
from tests.serving.api.scripted import Scripted, answer
from tests.serving.api.test_openai_client import chat, create
from tests.serving.api.test_response_format import chunks

CHAT = {"messages": [{"role": "user", "content": "x"}]}
TEXT = {"prompt": "x"}


def post(ask: Any, path: str, **body: Any) -> tuple[Any, Any]:
    """The answer, and the request that came to the engine."""
    engine = Scripted(answer)
    answered = ask(engine=engine).post(path, json={"model": "m", **body})
    return answered, engine.requests[-1] if engine.requests else None


NEUTRAL: list[dict[str, Any]] = [
    {"tools": None, "tool_choice": None, "functions": None},
    {"tools": [], "tool_choice": "none"},
    {"tool_choice": "auto", "parallel_tool_calls": True},
    {"reasoning_effort": None, "service_tier": None, "verbosity": None, "modalities": ["text"]},
    {"service_tier": "auto", "prompt_cache_key": "a", "safety_identifier": "b", "store": False, "user": "me"},
    {"skip_special_tokens": True, "spaces_between_special_tokens": True, "include_stop_str_in_output": False},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"continuous_usage_stats": True, "include_obfuscation": False}, "stream": True},
    {"logit_bias": {}, "stop": [], "metadata": {}, "n": 1, "seed": None, "top_logprobs": 0},
    {"use_beam_search": False, "length_penalty": 1.0, "early_stopping": False, "best_of": None, "detokenize": True},
    {"a_field_of_tomorrow": None},
    {"web_search_options": None, "prediction": {"type": "content", "content": "x"}, "audio": None},
    {"min_tokens": 0, "ignore_eos": False, "stop_token_ids": [], "bad_words": [], "priority": 0},
    {"response_format": {"type": "text"}, "structured_outputs": None, "guided_json": None},
]


@pytest.mark.parametrize("fields", NEUTRAL, ids=range(len(NEUTRAL)))
def test_values_without_effect_are_accepted(ask: Any, fields: dict[str, Any]) -> None:
    plain = post(ask, "/v1/chat/completions", **CHAT, seed=1)[1]
    answered, request = post(
        ask, "/v1/chat/completions", **{**CHAT, "seed": 1, **{k: v for k, v in fields.items() if k != "seed"}}
    )
    assert answered.status_code == 200, answered.text
    assert request == plain


@pytest.mark.parametrize(
    "fields",
    [
        {"suffix": ""},
        {"suffix": None, "best_of": 1},
        {"best_of": 2, "n": 2},
        {"logprobs": False},
        {"logprobs": None, "echo": None},
        {"stop": []},
        {"prompt_logprobs": None, "stream_options": {}},
        {"prompt_embeds": None},
    ],
)
def test_values_without_effect_of_completions(ask: Any, fields: dict[str, Any]) -> None:
    assert post(ask, "/v1/completions", **TEXT, **fields)[0].status_code == 200


WITH_A_GRAMMAR = "cannot be combined with a grammar, regex or choice; tool_choice none can"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    "path,fields,message",
    [
        ("chat", {"tools": [TOOL], "guided_regex": "a"}, f"tools: {WITH_A_GRAMMAR}"),
        ("chat", {"tool_choice": "required"}, "tool_choice: there are no tools to choose from"),
        ("chat", {"functions": [{}]}, "functions: not supported; use tools"),
        ("chat", {"modalities": ["text", "audio"]}, "modalities: answers are text"),
        ("chat", {"skip_special_tokens": False}, "skip_special_tokens: special tokens have no text"),
        ("chat", {"use_beam_search": True}, "use_beam_search: beam search is not supported"),
        ("chat", {"max_new_tokens": 5}, "unknown field 'max_new_tokens' (did you mean 'max_tokens'?)"),
        ("chat", {"temprature": 1}, "unknown field 'temprature' (did you mean 'temperature'?)"),
        ("chat", {"prompt": "x"}, "unknown field 'prompt' (did you mean 'messages'?)"),
        ("chat", {"logprobs": 5}, "logprobs: expected true or false (top_logprobs has the number of tokens)"),
        ("chat", {"top_logprobs": 3}, "top_logprobs: only if logprobs is true"),
        (
            "chat",
            {"max_tokens": 3, "max_completion_tokens": 4},
            "max_tokens: differs from max_completion_tokens, which it is another name of",
        ),
        (
            "chat",
            {"repeat_penalty": 1.1, "repetition_penalty": 1.2},
            "repeat_penalty: differs from repetition_penalty, which it is another name of",
        ),
        ("chat", {"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice: cannot be combined with guided_regex"),
        (
            "chat",
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs.regex: cannot be combined with response_format",
        ),
        (
            "chat",
            {"structured_outputs": {"regx": "a"}},
            "structured_outputs: unknown field 'regx' (did you mean 'regex'?)",
        ),
        (
            "chat",
            {"stream_options": {"include_usge": True}},
            "stream_options: unknown field 'include_usge' (did you mean 'include_usage'?)",
        ),
        ("text", {"logprobs": True}, "logprobs: expected a number of tokens (true is for /v1/chat/completions)"),
        ("text", {"suffix": "x"}, "suffix: text in the middle is not supported"),
        ("text", {"best_of": 2}, "best_of: only the value of n is supported"),
        ("text", {"temperature": "0.5"}, "temperature: expected a number (not as text)"),
        ("text", {"temperature": True}, "temperature: expected a number (not as text)"),
        ("text", {"max_tokens": "5"}, "max_tokens: expected an integer"),
        ("text", {"stream": "true"}, "stream: expected true or false"),
        ("text", {"seed": 2**63}, f"seed: must be less than {2**63}"),
        ("text", {"seed": -(2**63) - 1}, f"seed: must be at least {-(2**63)}"),
        ("text", {"logit_bias": {"x": 1}}, None),
        ("text", {"stop": ["", "x"]}, None),
        ("text", {"messages": []}, "unknown field 'messages' (did you mean 'prompt'?)"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(
    ask: Any, path: str, fields: dict[str, Any], message: str | None
) -> None:
    where, needed = ("/v1/chat/completions", CHAT) if path == "chat" else ("/v1/completions", TEXT)
    answered, request = post(ask, where, **needed, **fields)
    assert answered.status_code == 400, answered.text
    assert request is None
    error = answered.json()["error"]
    if message is not None:
        assert error["message"] == message
    assert error["param"]


@pytest.mark.parametrize("path,needed", [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
def test_fields_that_are_understood(ask: Any, path: str, needed: dict[str, Any]) -> None:
    def read(**fields: Any) -> Any:
        answered, request = post(ask, path, **needed, **fields)
        assert answered.status_code == 200, answered.text
        return request

    assert read(min_tokens=3).min_tokens == 3
    assert read(min_tokens=30, max_tokens=5).min_tokens == 5
    assert read(stop_token_ids=[5, 6]).stop_token_ids == (5, 6)
    assert read(repeat_penalty=1.5).sampling.repetition_penalty == 1.5
    assert read(max_completion_tokens=7).max_tokens == 7
    assert read(max_tokens=7, max_completion_tokens=7).max_tokens == 7
    assert read(guided_regex="a+").grammar == Grammar("regex", "a+")
    assert read(guided_choice=["a", "b"]).grammar == Grammar("choice", '["a", "b"]')
    assert read(guided_grammar="start: A").grammar == Grammar("grammar", "start: A")
    assert read(structured_outputs={"choice": ["a"]}).grammar == Grammar("choice", '["a"]')
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": True}
    assert read(guided_json=schema).json_schema == schema
    assert read(guided_json=json.dumps(schema)).json_schema == schema
    assert read(structured_outputs={"json": schema}).json_schema == schema
    assert read(structured_outputs={"json_object": True}).json_schema == {"type": "object"}
    assert read(response_format={"type": "json_object", "schema": schema}).json_schema == schema
    assert read(response_format={"type": "json_object"}).json_schema == {"type": "object"}
    assert len(read(truncate_prompt_tokens=1).prompt_token_ids) == 1
    assert len(read(truncate_prompt_tokens=-1).prompt_token_ids) >= 1


def test_truncation_reads_the_end_of_a_prompt(ask: Any) -> None:
    answered, request = post(ask, "/v1/completions", prompt="abcdef", truncate_prompt_tokens=2, echo=True)
    assert bytes(request.prompt_token_ids) == b"ef"
    assert answered.json()["choices"][0]["text"] == "efabc"
    client = ask(engine=Scripted(answer), max_prompt=4)
    long = {"model": "m", "prompt": "abcdef"}
    assert client.post("/v1/completions", json=long).status_code == 400
    assert client.post("/v1/completions", json=long | {"truncate_prompt_tokens": -1}).status_code == 200


def test_structured_text_of_a_model(client: openai.OpenAI) -> None:
    drawn = {"temperature": 1.0, "seed": 3, "max_tokens": 40}
    choice = create(client, **drawn, extra_body={"guided_choice": ["left", "right"]}).choices[0]
    assert choice.text in ("left", "right") and choice.finish_reason == "stop"
    pattern = r"[A-F]{2}[0-9]{3}"
    text = chat(client, **{"temperature": 1.0, "seed": 3}, extra_body={"structured_outputs": {"regex": pattern}})
    assert re.fullmatch(pattern, text.choices[0].message.content)
    with pytest.raises(openai.BadRequestError, match="regular expression is invalid"):
        create(client, extra_body={"guided_regex": "(["})


GUIDELLM = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "max_completion_tokens": 3,
    "max_tokens": 3,
    "ignore_eos": True,
    "stop": None,
}
VLLM_BENCH = {
    "model": "m",
    "prompt": "x",
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": 3,
    "logprobs": None,
    "stream": True,
    "stream_options": {"include_usage": True},
    "ignore_eos": True,
}


def test_what_benchmarks_send(ask: Any) -> None:
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}
    bench_chat = {**VLLM_BENCH, **parts, "max_completion_tokens": 3}
    for absent in ("prompt", "max_tokens"):
        del bench_chat[absent]
    for path, body in (
        ("/v1/chat/completions", GUIDELLM | parts),
        ("/v1/completions", GUIDELLM | TEXT),
        ("/v1/completions", VLLM_BENCH),
        ("/v1/chat/completions", bench_chat),
    ):
        streamed = chunks(post(ask, path, **{k: v for k, v in body.items() if k != "model"})[0])
        assert streamed[-1]["usage"]["completion_tokens"] == 3


def test_usage_so_far(ask: Any) -> None:
    body = {**TEXT, "stream": True, "n": 2}
    options = {"include_usage": True, "continuous_usage_stats": True}
    streamed = chunks(post(ask, "/v1/completions", **body, stream_options=options)[0])
    counts = [chunk["usage"]["completion_tokens"] for chunk in streamed]
    assert counts == sorted(counts) and counts[-1] == 6
    assert {chunk["usage"]["prompt_tokens"] for chunk in streamed[1:]} == {1}


def test_every_neutral_field_has_no_field_of_its_name() -> None:
    for body in {each.body for each in ENDPOINTS if each.body}:
        assert issubclass(body, bodies.Body)
        assert not set(body.NEUTRAL) & set(body.model_fields), body
