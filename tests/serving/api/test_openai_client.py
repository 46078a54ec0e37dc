"""OpenAI's own client against a real server: what it sends is understood, and what it gets is what it expects."""

from __future__ import annotations

import base64
import itertools
import math
import time
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.serving.api.server import Server

PROMPT = "the river runs"


def create(client: openai.OpenAI, **fields: Any) -> Any:
    return client.completions.create(
        **{"model": "plain", "prompt": PROMPT, "max_tokens": 12, "temperature": 0} | fields
    )


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    messages = [{"role": "user", "content": "hello"}]
    return client.chat.completions.create(
        **{"model": "chatty", "messages": messages, "max_completion_tokens": 12, "temperature": 0} | fields
    )


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].text for chunk in stream if chunk.choices)


def test_a_completion_equals_generation(client: openai.OpenAI, engine: AsyncEngine) -> None:
    model = engine.models["plain"].model
    tokens = list(PROMPT.encode())
    with torch.inference_mode():
        for _ in range(12):
            tokens.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
    answer = create(client)
    assert answer.choices[0].text == engine.models["plain"].tokenizer.decode(tokens[len(PROMPT) :])
    assert answer.object == "text_completion"
    assert answer.model == "plain"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 12)
    assert answer.usage.total_tokens == len(PROMPT) + 12
    assert answer.choices[0].finish_reason == "length"


def test_logprobs_are_the_models(client: openai.OpenAI, engine: AsyncEngine) -> None:
    """Of the prompt and of what is written, beside the likeliest; the first token has none."""
    choice = create(client, echo=True, logprobs=3).choices[0]
    served = engine.models["plain"]
    assert choice.text.startswith(PROMPT)
    logprobs = choice.logprobs
    assert (
        len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    )
    raw = [_byte(token, served.tokenizer.end) for token in logprobs.tokens]
    with torch.inference_mode():
        logits = served.model(torch.tensor([raw]))[0][0].float()
    expected = logits[:-1].log_softmax(-1)[range(len(raw) - 1), raw[1:]]
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    np.testing.assert_allclose(logprobs.token_logprobs[1:], expected, atol=1e-4)
    for own, top, row in zip(
        logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], logits[:-1].log_softmax(-1), strict=True
    ):
        assert len(top) in (3, 4)
        assert own in top.values()
        np.testing.assert_allclose(sorted(top.values(), reverse=True)[:3], row.topk(3).values, atol=1e-4)
    offsets = itertools.pairwise([*logprobs.text_offset, len(choice.text)])
    for token, (start, end) in zip(logprobs.tokens, offsets, strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[start:end] in (token, "")


def _byte(token: str, end: int) -> int:
    if token == "<|endoftext|>":
        return end
    return int(token[8:], 16) if token.startswith("bytes:") else ord(token)


def test_a_stream_is_the_same_text(client: openai.OpenAI) -> None:
    whole = create(client, max_tokens=40).choices[0].text
    chunks = list(create(client, max_tokens=40, stream=True, stream_options={"include_usage": True}))
    assert text_of(chunks) == whole
    assert chunks[-1].usage.completion_tokens == 40
    assert chunks[-2].choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_batch_of_prompts_equals_single_requests(client: openai.OpenAI) -> None:
    prompts = ["a", "the sea", PROMPT]
    together = create(client, prompt=prompts)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [c.text for c in together.choices] == [create(client, prompt=p).choices[0].text for p in prompts]
    tokens = [list(prompt.encode()) for prompt in prompts]
    assert [c.text for c in create(client, prompt=tokens).choices] == [c.text for c in together.choices]
    assert create(client, prompt=tokens[0]).choices[0].text == together.choices[0].text
    streamed: dict[int, str] = {0: "", 1: "", 2: ""}
    for chunk in create(client, prompt=prompts, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert list(streamed.values()) == [choice.text for choice in together.choices]


def test_seeds(client: openai.OpenAI) -> None:
    drawn = {"temperature": 1.0, "max_tokens": 30}
    once, again = (create(client, seed=5, **drawn).choices[0].text for _ in range(2))
    assert once == again
    three = [choice.text for choice in create(client, seed=5, n=3, **drawn).choices]
    assert three[0] == once
    assert three[1] == create(client, seed=6, **drawn).choices[0].text
    assert len({*three, create(client, **drawn).choices[0].text}) == 4


def test_stop_strings(client: openai.OpenAI) -> None:
    """The text ends before the first of them, streamed or not; nothing of it is seen."""
    whole = create(client, max_tokens=60, temperature=1, seed=3).choices[0].text
    at = next(i for i in range(8, 40) if whole[i : i + 2].isprintable() and whole.find(whole[i : i + 2]) == i)
    fields = {"max_tokens": 60, "temperature": 1, "seed": 3, "stop": ["\x00\x00\x00", whole[at : at + 2]]}
    stopped = create(client, **fields)
    assert stopped.choices[0].text == whole[:at]
    assert stopped.choices[0].finish_reason == "stop"
    assert text_of(create(client, stream=True, **fields)) == whole[:at]


def test_ignore_eos_continues_past_the_end_token(client: openai.OpenAI, engine: AsyncEngine) -> None:
    likes_to_end = {"logit_bias": {str(engine.models["plain"].tokenizer.end): 100}, "max_tokens": 5}
    ended = create(client, **likes_to_end)
    assert (ended.usage.completion_tokens, ended.choices[0].finish_reason) == (1, "stop")
    went_on = create(client, **likes_to_end, extra_body={"ignore_eos": True})
    assert (went_on.usage.completion_tokens, went_on.choices[0].finish_reason) == (5, "length")


def test_reading_only(client: openai.OpenAI) -> None:
    read = create(client, max_tokens=0, echo=True, logprobs=0)
    assert read.choices[0].text == PROMPT
    assert read.choices[0].finish_reason == "length"
    assert len(read.choices[0].logprobs.tokens) == len(PROMPT)
    assert read.usage.completion_tokens == 0


def test_a_chat_by_the_models_template(client: openai.OpenAI) -> None:
    answer = chat(client, messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}])
    assert answer.choices[0].message.role == "assistant"
    prompt = "<|system|>be brief\n<|user|>hello\n<|assistant|>"
    assert answer.choices[0].message.content == create(client, model="chatty", prompt=prompt).choices[0].text
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    whole = [{"role": "user", "content": "hel\nlo"}]
    assert (
        chat(client, messages=[{"role": "user", "content": parts}]).choices[0].message.content
        == chat(client, messages=whole).choices[0].message.content
    )


def test_a_chat_with_a_model_without_a_template(client: openai.OpenAI) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": " hello"},
        {"role": "user", "content": "how are you?"},
    ]
    prompt = "Be brief.\n\nUser: hi\nAssistant: hello\nUser: how are you?\nAssistant:"
    answer = chat(client, model="plain", messages=messages)
    assert answer.choices[0].message.content == create(client, prompt=prompt).choices[0].text
    assert answer.usage.prompt_tokens == len(prompt)


def test_a_chat_streams(client: openai.OpenAI) -> None:
    whole = chat(client, n=2, seed=1, temperature=1, logprobs=True, top_logprobs=2)
    texts = {0: "", 1: ""}
    tokens: dict[int, list[str]] = {0: [], 1: []}
    fields = {"n": 2, "seed": 1, "temperature": 1, "logprobs": True, "top_logprobs": 2, "stream": True}
    for chunk in chat(client, **fields):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        if choice.logprobs:
            tokens[choice.index] += [entry.token for entry in choice.logprobs.content]
            assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert tokens == {c.index: [entry.token for entry in c.logprobs.content] for c in whole.choices}
    for choice in whole.choices:
        assert (
            b"".join(bytes(e.bytes or []) for e in choice.logprobs.content).decode("utf-8", "replace")
            == choice.message.content
        )
        assert all(entry.logprob <= 0 for entry in choice.logprobs.content)


def test_penalties_and_biases(client: openai.OpenAI) -> None:
    """A bias of 100 decides; a penalty on what was written keeps a greedy model from saying it again."""
    assert create(client, logit_bias={"113": 100}).choices[0].text == "q" * 12
    assert "q" not in create(client, logit_bias={"113": -100}, max_tokens=30).choices[0].text
    biased = create(client, logit_bias={"113": 2.0, "122": 1.9}, presence_penalty=2.0, frequency_penalty=2.0)
    assert biased.choices[0].text != create(client, logit_bias={"113": 2.0, "122": 1.9}).choices[0].text


@pytest.mark.parametrize(
    "fields,kind",
    [
        ({"model": "plian"}, openai.NotFoundError),
        ({"model": "plain:none"}, openai.NotFoundError),
        ({"temperature": -1}, openai.BadRequestError),
        ({"n": 100}, openai.BadRequestError),
        ({"prompt": "x" * 500}, openai.BadRequestError),
        ({"prompt": [999]}, openai.BadRequestError),
        ({"extra_body": {"tempertaure": 1}}, openai.BadRequestError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(client: openai.OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], stream: bool) -> None:
    with pytest.raises(kind) as caught:
        create(client, stream=stream, **fields)
    assert caught.value.type == "invalid_request_error"
    if fields.get("model") == "plian":
        assert "did you mean 'plain'?" in str(caught.value)
    if "extra_body" in fields:
        assert "did you mean 'temperature'?" in str(caught.value)


def test_models(client: openai.OpenAI, engine: AsyncEngine) -> None:
    assert [model.id for model in client.models.list()] == ["plain", "chatty"]
    model = client.models.retrieve("plain")
    assert model.owned_by == "synthe"
    assert model.synthe["parameters"] == engine.models["plain"].model.parameter_count()  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


def test_embeddings(client: openai.OpenAI, engine: AsyncEngine) -> None:
    texts = ["the sea", "rain on the hills"]
    response = client.embeddings.create(model="plain", input=texts, encoding_format="float")  # (base64 is its default)
    rows = np.array([each.embedding for each in response.data])
    expected = engine.embed("plain", [list(text.encode()) for text in texts]).numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    packed = client.embeddings.create(model="plain", input=texts)
    np.testing.assert_array_equal(np.array([each.embedding for each in packed.data]), rows.astype(np.float32))
    assert response.usage.prompt_tokens == sum(map(len, texts))
    with pytest.raises(openai.BadRequestError, match="have 32"):
        client.embeddings.create(model="plain", input="x", dimensions=31)
    many = client.embeddings.create(model="plain", input=[*texts, *(f"sea {n}" for n in range(29))])  # in portions
    assert [each.index for each in many.data] == list(range(31))
    np.testing.assert_allclose(np.array([each.embedding for each in many.data[:2]]), rows, atol=1e-5)
    raw = client.embeddings.with_raw_response.create(model="plain", input="x", encoding_format="base64")
    assert len(base64.b64decode(raw.http_response.json()["data"][0]["embedding"])) == 4 * 32


def test_a_disconnected_client_frees_its_sequence(client: openai.OpenAI, engine: AsyncEngine) -> None:
    stream = create(client, max_tokens=600, stream=True)
    next(iter(stream))
    stream.close()
    _idle(engine)
    with pytest.raises(openai.APITimeoutError):
        create(client.with_options(timeout=0.03), max_tokens=600, n=4)
    _idle(engine)
    assert create(client).choices[0].text


def _idle(engine: AsyncEngine, within: float = 5.0) -> None:
    end = time.monotonic() + within
    while engine.status()["live"]:
        assert time.monotonic() < end, "a row is still being written for nobody"
        time.sleep(0.02)


def test_a_client_that_does_not_read_does_not_block_others(server: Server, client: openai.OpenAI) -> None:
    with httpx.stream(
        "POST",
        f"{server.url}/v1/completions",
        json={"model": "plain", "prompt": "x", "max_tokens": 600, "stream": True, "n": 4, "logprobs": 20},
        timeout=30,
    ):
        assert create(client).choices[0].text


def test_metrics_count(server: Server, client: openai.OpenAI) -> None:
    def figures() -> dict[str, float]:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return {key: float(value) for key, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    before = figures()
    create(client, max_tokens=7)
    with pytest.raises(openai.NotFoundError):
        create(client, model="none")
    httpx.get(f"{server.url}/no/such/{time.time()}")
    after = figures()

    def more(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert more('synthe_written_tokens_total{model="plain"}') == 7
    assert more('synthe_prompt_tokens_total{model="plain"}') == len(PROMPT)
    assert more('synthe_finished_total{model="plain",reason="length"}') == 1
    assert more('synthe_time_between_tokens_seconds_count{model="plain"}') == 6
    assert more('synthe_http_requests_total{method="POST",path="/v1/completions",status="200"}') == 1
    assert more('synthe_http_requests_total{method="POST",path="/v1/completions",status="404"}') == 1
    assert more('synthe_http_requests_total{method="GET",path="other",status="404"}') == 1
    assert after["synthe_engine_max_batch"] == 16
    assert all(math.isfinite(value) for value in after.values())


def test_tokenize_and_detokenize(server: Server, engine: AsyncEngine) -> None:
    def post(path: str, **body: Any) -> Any:
        return httpx.post(server.url + path, json=body).json()

    tokenized = post("/tokenize", prompt="né", return_token_strs=True)
    assert tokenized["tokens"] == list("né".encode())
    assert tokenized["count"] == 3
    assert tokenized["token_strs"] == ["n", "bytes:\\xc3", "bytes:\\xa9"]
    assert post("/detokenize", tokens=tokenized["tokens"]) == {"prompt": "né"}
    info = httpx.get(f"{server.url}/tokenizer_info", params={"model": "chatty"}).json()
    assert post("/tokenize", prompt=info["eos_token"])["tokens"] == [info["eos_token_id"]] == [256]
    messages = [{"role": "user", "content": "x"}]
    body = {"model": "chatty", "messages": messages, "add_generation_prompt": False}
    assert bytes(post("/tokenize", **body)["tokens"]) == b"<|user|>x\n"
    assert httpx.post(f"{server.url}/tokenize", json={}).status_code == 400
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": [5, 2**31]}).status_code == 400
