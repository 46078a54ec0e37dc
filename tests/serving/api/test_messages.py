"""Messages as clients send them back, and what is said of those that cannot be read."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.serving.api.scripted import Scripted, answer
from tests.serving.api.test_openai_client import chat

USER = {"role": "user", "content": "hi"}
REPLIES: list[dict[str, Any]] = [
    {"role": "assistant", "content": "x", "refusal": None},
    {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None, "function_call": None},
    {"role": "assistant", "content": "x", "tool_calls": None, "reasoning_content": None, "anything": None},
    {"role": "assistant", "content": "x", "tool_calls": [], "reasoning": "because", "name": "synthe"},
    {"role": "assistant", "content": "x", "provider_specific_fields": {"refusal": None}, "thinking_blocks": []},
    {"role": "assistant", "content": "x", "parsed": {"a": 1}, "images": []},
    {"role": "assistant", "content": None},
    {"role": "assistant"},
    {"role": "assistant", "content": None, "refusal": "I cannot"},
    {"role": "assistant", "content": []},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot"}]},
    {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
    {"role": "user", "content": []},
    {"role": "user", "content": ""},
    {"role": "developer", "content": "be brief", "tool_call_id": None},
]


def post(ask: Any, *messages: Any, **body: Any) -> Any:
    engine = Scripted(answer)
    answered = ask(engine=engine).post("/v1/chat/completions", json={"model": "m", "messages": list(messages), **body})
    prompt = bytes(engine.requests[-1].prompt_token_ids).decode() if engine.requests else ""
    return answered, prompt


@pytest.mark.parametrize("reply", REPLIES, ids=range(len(REPLIES)))
def test_what_servers_emit_is_read_as_history(ask: Any, reply: Any) -> None:
    answered, _ = post(ask, USER, reply, USER)
    assert answered.status_code == 200, answered.text


@pytest.mark.parametrize("model", ["chatty", "plain"])
def test_a_reply_of_the_server_is_sent_back(client: openai.OpenAI, model: str) -> None:
    messages: list[Any] = [USER]
    reply = chat(client, model=model, messages=messages).choices[0].message
    shapes = (reply, reply.model_dump(), reply.model_dump(exclude_none=True))
    texts = {chat(client, model=model, messages=[USER, each, USER]).choices[0].message.content for each in shapes}
    assert len(texts) == 1


def test_several_parts_are_lines(ask: Any) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert post(ask, {"role": "user", "content": parts})[1] == "User: one\ntwo\nAssistant:"


def test_a_refusal_is_what_the_assistant_said(ask: Any) -> None:
    prompt = post(ask, USER, {"role": "assistant", "content": None, "refusal": "no"}, USER)[1]
    assert prompt == "User: hi\nAssistant: no\nUser: hi\nAssistant:"


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
TEXT = {"type": "text", "text": "what is this?"}


@pytest.mark.parametrize(
    "messages,message",
    [
        (
            [USER, USER, {"role": "user", "content": [TEXT, IMAGE]}],
            "messages[2].content[1]: image_url is not supported",
        ),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
            "messages[0].content[0]: input_audio is not supported",
        ),
        (
            [{"role": "user", "content": [{"type": "file", "file": {}}]}],
            "messages[0].content[0]: file is not supported",
        ),
        (
            [{"role": "user", "content": [{"type": "txt", "text": "a"}]}],
            "messages[0].content[0]: this type of part is not supported (did you mean 'text'?)",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text.text: this field is required"),
        ([{"role": "user", "content": ["a"]}], None),
        ([{"role": "user", "content": 5}], "messages[0].content: expected a text or a list of parts"),
        ([{"role": "user", "content": None}], "messages[0].content: a message of the user needs one"),
        ([{"role": "user"}], "messages[0].content: a message of the user needs one"),
        ([{"role": "user", "contnet": "x"}], "messages[0]: unknown field 'contnet' (did you mean 'content'?)"),
        (
            [USER, {"role": "tool", "tool_call_id": "x", "content": "5"}],
            "messages[1].tool_call_id: no call of a message before has this id",
        ),
        (
            [{"role": "function", "name": "f", "content": "5"}],
            "messages[0].role: function messages: not supported; use tools",
        ),
        (
            [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}],
            "messages[1].tool_calls[0].function: this field is required",
        ),
        ([{"role": "assistant", "content": "", "audio": {"id": "x"}}], "messages[0].audio: audio is not supported"),
        ([], "messages: must have at least 1"),
        (["hi"], None),
        ([None], None),
    ],
)
def test_what_cannot_be_read_is_named(ask: Any, messages: list[Any], message: str | None) -> None:
    answered, _ = post(ask, *messages)
    assert answered.status_code == 400
    error = answered.json()["error"]
    assert error["message"].startswith("messages") and "with a session" not in error["message"]
    if message is not None:
        assert error["message"] == message
    assert error["param"].startswith("messages")


def test_the_template_gets_its_values(ask: Any, engine: Any, monkeypatch: Any) -> None:
    template = (
        "{{ mood }}{{ reasoning_effort }}{% for m in messages %}[{{ m.role }}:{{ m.reasoning_content or '' }}"
        "{{ m.content | trim }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    monkeypatch.setattr(engine.models["chatty"].tokenizer, "chat_template", template)
    client = ask()

    def prompt(*messages: Any, **body: Any) -> str:
        body = {"model": "chatty", "messages": list(messages), **body}
        answered = client.post("/tokenize", json=body)
        assert answered.status_code == 200, answered.text
        return bytes(answered.json()["tokens"]).decode()

    reply = {"role": "assistant", "content": "so ", "reasoning": "because "}
    assert prompt(USER, chat_template_kwargs={"mood": "calm "}) == "calm [user:hi]>"
    assert prompt(USER, add_generation_prompt=False) == "[user:hi]"
    assert prompt(USER, reply) == "[user:hi][assistant:because so]>"
    assert prompt(USER, reply, continue_final_message=True) == "[user:hi][assistant:because so"
    body = {"model": "chatty", "messages": [USER], "max_tokens": 1}
    used = client.post(
        "/v1/chat/completions", json={**body, "reasoning_effort": "low", "chat_template_kwargs": {"mood": "x"}}
    )
    assert used.json()["usage"]["prompt_tokens"] == len("xlow[user:hi]>")
    for values in ({"messages": []}, {"add_generation_prompt": False}):
        refused = client.post("/v1/chat/completions", json={**body, "chat_template_kwargs": values})
        assert refused.status_code == 400 and "from the conversation" in refused.json()["error"]["message"]
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert client.post("/v1/chat/completions", json=body | both).status_code == 400
