"""POST /tokenize and /detokenize, GET /tokenizer_info, in vLLM's format; POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.responses import JSONResponse, Response

from synthe_core.inference.outputs import Finished, PooledOutput
from synthe_core.inference.request import Request
from synthe_core.serving.api import bodies, prompts
from synthe_core.serving.api.completion_job import token_text
from synthe_core.serving.api.completions import several
from synthe_core.serving.api.context import Api, Call
from synthe_core.serving.api.engine_job import EngineJob, failure_of
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.response_format import json_response
from synthe_core.serving.api.tools import described


async def tokenize(api: Api, call: Call, body: bodies.Tokenize) -> Response:
    served = api.served(body.model, call.owner)
    if body.messages is not None:
        reading = prompts.Reading(
            begins=body.add_special_tokens,
            answer=body.add_generation_prompt is not False,
            continues=bool(body.continue_final_message),
            values=body.chat_template_kwargs or {},
            tools=described(body.tools or ()),
        )
        tokens = list((await prompts.conversation(api, served, body.messages, reading)).tokens)
    else:
        tokens = await prompts.encoded(api, served, body.prompt or "")
        if body.add_special_tokens is not False and served.tokenizer.begin is not None:
            tokens = [served.tokenizer.begin, *tokens]
    response: dict[str, Any] = {"count": len(tokens), "max_model_len": api.max_length(served), "tokens": tokens}
    if body.return_token_strs:
        response["token_strs"] = await asyncio.to_thread(
            lambda: [token_text(served.tokenizer, each) for each in tokens]
        )
    return await json_response(lambda: response, len(tokens))


async def detokenize(api: Api, call: Call, body: bodies.Detokenize) -> Response:
    served = api.served(body.model, call.owner)
    tokenizer, tokens = served.tokenizer, body.tokens
    most = served.model.vocab
    if (unknown := max(tokens, default=0)) >= most:
        raise HttpError(400, f"tokens: no token {unknown} (the vocabulary has {most} tokens)", param="tokens")
    if tokenizer.begin is not None and tokens[:1] == [tokenizer.begin]:  # which /tokenize has added
        tokens = tokens[1:]
    return JSONResponse({"prompt": await prompts.decoded(api, served, tokens, marked=True)})


async def tokenizer_info(api: Api, call: Call, body: None) -> Response:
    served = api.served(call.request.query_params.get("model"), call.owner)
    tokenizer = served.tokenizer
    names = tokenizer.named_tokens
    return JSONResponse(
        {
            "tokenizer_class": type(tokenizer).__name__,
            "bos_token": names.get("bos_token"),
            "eos_token": names["eos_token"],
            "pad_token": names.get("pad_token", tokenizer.spelling(tokenizer.end)),
            "bos_token_id": tokenizer.begin,
            "eos_token_id": tokenizer.end,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": api.max_length(served),
            "chat_template": tokenizer.chat_template,
        }
    )


async def embeddings(api: Api, call: Call, body: bodies.Embedding) -> Response:
    """The mean over a text's tokens of the last block's output, as a vector of length 1."""
    served = api.served(body.model, call.owner)
    reading = prompts.Reading(body.truncate_prompt_tokens, begins=body.add_special_tokens)
    read = [(await prompts.completion(api, served, text, reading)).tokens for text in several(body.input)]
    count = sum(map(len, read))
    if len(read) > api.settings.max_texts:
        raise HttpError(400, f"input: at most {api.settings.max_texts} texts at a time", param="input")
    if count > api.settings.max_prompt:
        raise HttpError(400, f"input: at most {api.settings.max_prompt:,} tokens at a time", param="input")
    requests = [
        Request(body.model, each, max_tokens=0, pooling=True, client=call.sender, owner=call.owner) for each in read
    ]
    rows = unit_length(await _pooled(api, requests))
    if body.dimensions not in (None, rows.shape[1]):
        raise HttpError(400, f"dimensions: the embeddings of {body.model} have {rows.shape[1]}", param="dimensions")
    in_base64 = body.encoding_format == "base64"
    call.note(f"{body.model}  {count} tokens")

    def build() -> dict[str, Any]:
        data = [
            {"object": "embedding", "index": i, "embedding": _base64(row) if in_base64 else row.tolist()}
            for i, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "data": data, "model": body.model, "usage": usage}

    return await json_response(build, rows.size)


async def _pooled(api: Api, requests: Sequence[Request]) -> np.ndarray:
    """float32 [N, D]: what each request has pooled; the engine has as many at a time as a request may have choices."""
    rows: dict[int, np.ndarray] = {}
    size = api.settings.max_choices
    for first in range(0, len(requests), size):
        with EngineJob(api, requests[first : first + size]) as job:
            await job.begin()
            async for index, event in job.events():
                if isinstance(event, PooledOutput):
                    rows[first + index] = event.hidden.numpy()
                elif isinstance(event, Finished) and first + index not in rows:
                    raise failure_of(event) or HttpError(503, "the server is shutting down")
    return np.stack([rows[index] for index in range(len(rows))])


def unit_length(rows: np.ndarray) -> np.ndarray:
    """float32 [N, D]: every row divided by its length; zeros stay zeros."""
    rows = rows.astype(np.float32)
    largest = np.abs(rows).max(1, keepdims=True)  # so that no square overflows
    rows = rows / np.where(largest > 0, largest, np.float32(1))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, np.float32(1)), dtype=np.float32)


def _base64(row: np.ndarray) -> str:
    """Little-endian float32, as OpenAI's clients read it."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")
