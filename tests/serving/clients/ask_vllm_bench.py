"""The requests of `vllm bench serve` by default, sent and read as it does, without vLLM, which takes a GPU's libraries.

What it sends stands in vllm/benchmarks/lib/endpoint_request_func.py of vllm-project/vllm (commit 02cfb534).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
from common import KEY, MODEL, URL

TEXT, COUNT = "the sea and the rain " * 40, 8
HEADERS = {"Authorization": f"Bearer {KEY}", "x-request-id": "benchmark-serving0"}
SAMPLING = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "frequency_penalty": 0.0}
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
COMPLETION: dict[str, Any] = {
    "model": MODEL,
    "repetition_penalty": 1.0,
    "max_tokens": COUNT,
    "logprobs": None,
    **STREAM,
}
PARTS = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": PARTS, "max_completion_tokens": COUNT, **STREAM}


async def streamed(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> tuple[str, int]:
    """The text and the number of tokens of an answer, from events that are divided by empty lines."""
    text, chunks, usage, ended = "", 0, None, False
    async with session.post(f"{URL}/{path}", json=body, headers=HEADERS) as response:
        assert response.status == 200, await response.text()
        for event in (await response.text()).split("\n\n"):
            if not event.strip() or event.startswith(":"):
                continue
            content = event.strip().removeprefix("data: ")
            if content == "[DONE]":
                ended = True
                continue
            data = json.loads(content)
            if data["choices"]:
                (choice,) = data["choices"]
                text += (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""
                chunks += 1
            else:
                usage = data["usage"]
    assert ended and chunks and usage is not None and usage["prompt_tokens"] > 0
    return text, usage["completion_tokens"]


async def main() -> None:
    async with aiohttp.ClientSession() as session:
        for prompt in (TEXT, list(TEXT.encode())):
            _, tokens = await streamed(session, "completions", {**COMPLETION, "prompt": prompt})
            assert 0 < tokens <= COUNT
        body = {**COMPLETION, "prompt": TEXT, "ignore_eos": True, **SAMPLING}
        answers = await asyncio.gather(*(streamed(session, "completions", body) for _ in range(4)))
        assert set(answers) == {(answers[0][0], COUNT)}
        assert (await streamed(session, "completions", {**body, "logprobs": 1}))[1] == COUNT
        for more in ({}, {"ignore_eos": True, **SAMPLING, "repetition_penalty": 1.0}):
            _, tokens = await streamed(session, "chat/completions", {**CHAT, **more})
            assert 0 < tokens <= COUNT and (not more or tokens == COUNT)
        for texts in (TEXT, [TEXT, "rain"]):
            embedding = {"model": MODEL, "input": texts, "truncate_prompt_tokens": -1}
            async with session.post(f"{URL}/embeddings", json=embedding, headers=HEADERS) as response:
                assert response.status == 200, await response.text()
                assert (await response.json())["usage"]["prompt_tokens"] > 0


asyncio.run(main())
print("ok")
