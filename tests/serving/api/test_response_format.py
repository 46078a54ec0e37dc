"""Text and tokens come together: offsets, what a stop string cuts off, unfinished characters, failures on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.inference.outputs import Finished, Logprob, Output, PrefillFinished, TokenOutput
from synthe_core.inference.request import Busy
from synthe_core.serving.api.completion_job import MIN_LOGPROB, token_text
from tests.serving.api.scripted import Scripted, answer, prompt_logprobs, written

END = 256


def post(ask: Any, engine: Scripted, path: str = "completions", **body: Any) -> Any:
    body = {"model": "m", **({"prompt": "xy"} if path == "completions" else {}), **body}
    return ask(engine=engine).post(f"/v1/{path}", json=body)


def chunks(answered: Any) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answered.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def script(*events: Output) -> Any:
    return lambda request: [PrefillFinished(len(request.prompt_token_ids), 0), *events]


def test_tokens_of_a_stop_string_are_not_sent(ask: Any) -> None:
    engine = Scripted(script(*written(b"abST", ["a", "b", "", ""]), Finished("stop", "", 2, 0, 4)))
    choice = post(ask, engine, logprobs=0, stop="ST").json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert choice["logprobs"]["tokens"] == ["a", "b"]


def test_delayed_text_is_sent_with_its_tokens(ask: Any) -> None:
    engine = Scripted(script(*written(b"abSo", ["a", "b", "", "So"]), Finished("length", "", 2, 0, 4)))
    streamed = chunks(post(ask, engine, logprobs=0, stream=True))
    pieces = [(c["choices"][0]["text"], c["choices"][0]["logprobs"]["tokens"]) for c in streamed]
    assert pieces == [("a", ["a"]), ("b", ["b"]), ("So", ["S", "o"]), ("", [])]
    assert [c["choices"][0]["finish_reason"] for c in streamed] == [None, None, None, "length"]


def test_the_end_of_the_document_is_a_token_without_text(ask: Any) -> None:
    """As harnesses count on, which drop the last token and keep the prompt's."""
    end = TokenOutput(END, "", Logprob(END, -0.1), (Logprob(END, -0.1),), 0.9)
    engine = Scripted(script(*prompt_logprobs(b"xy"), end, Finished("stop", "", 2, 0, 1)))
    logprobs = post(ask, engine, logprobs=1, echo=True, max_tokens=1).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["x", "y", "<|endoftext|>"]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert logprobs["token_logprobs"] == [None, -2.0, -0.1]
    chat = Scripted(script(end, Finished("stop", "", 2, 0, 1)))
    body = {"messages": [{"role": "user", "content": "x"}], "logprobs": True}
    assert post(ask, chat, "chat/completions", **body).json()["choices"][0]["logprobs"]["content"] == []


@pytest.mark.parametrize("reason", ["length", "stop"])
def test_an_unfinished_character(ask: Any, reason: str) -> None:
    """A text cut off within a character: all of its tokens are sent, also if the text ends with a stop token."""
    end = [TokenOutput(END, "", Logprob(END, -1.0), (), 0.5)] if reason == "stop" else []
    engine = Scripted(
        script(*written("é".encode()[:1], [""]), *end, Finished(reason, "\N{REPLACEMENT CHARACTER}", 2, 0, 1))
    )  # type: ignore[arg-type]
    choice = post(ask, engine, logprobs=0).json()["choices"][0]
    assert choice["text"] == "\N{REPLACEMENT CHARACTER}"
    assert choice["logprobs"]["tokens"][0] == "bytes:\\xc3"


def test_offsets_count_characters_of_the_whole_text(ask: Any) -> None:
    engine = Scripted(
        script(*prompt_logprobs("é".encode()), *written("ñz".encode(), ["", "ñ", "z"]), Finished("length", "", 2, 0, 3))
    )
    choice = post(ask, engine, prompt="é", logprobs=0, echo=True).json()["choices"][0]
    assert choice["text"] == "éñz"
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 1, 2]


def test_echo_of_tokens_is_their_text(ask: Any) -> None:
    engine = Scripted(answer)
    answered = post(ask, engine, prompt=[[104, 105], [111]], echo=True, n=2).json()
    assert [choice["text"] for choice in answered["choices"]] == ["hiabc", "hiabc", "oabc", "oabc"]
    assert [choice["index"] for choice in answered["choices"]] == [0, 1, 2, 3]
    assert answered["usage"]["prompt_tokens"] == 3  # each once
    assert answered["usage"]["completion_tokens"] == 12


def test_a_logprob_of_minus_infinity_is_a_finite_number(ask: Any) -> None:
    engine = Scripted(script(*written(b"a", ["a"], logprob=float("-inf")), Finished("length", "", 2, 0, 1)))
    assert post(ask, engine, logprobs=0).json()["choices"][0]["logprobs"]["token_logprobs"] == [MIN_LOGPROB]


def test_seeds_differ_by_choice_and_not_by_prompt(ask: Any) -> None:
    engine = Scripted(answer)
    post(ask, engine, prompt=["x", "y"], n=2, seed=7)
    assert [request.seed for request in engine.requests] == [7, 8, 7, 8]
    post(ask, engine, seed=-1)
    assert engine.requests[-1].seed == -1
    post(ask, engine, n=2, seed=2**63 - 1)
    assert [request.seed for request in engine.requests[-2:]] == [2**63 - 1, -(2**63)]
    post(ask, engine), post(ask, engine)
    assert engine.requests[-1].seed != engine.requests[-2].seed


def test_a_failure_is_a_500_with_its_message(ask: Any) -> None:
    failing = script(*written(b"a", ["a"]), Finished("error", "", 2, 0, 1, "the disk\nis full"))
    answered = post(ask, Scripted(failing))
    assert answered.status_code == 500
    assert answered.json()["error"] == {
        "message": "the disk is full",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    *_, last = chunks(post(ask, Scripted(failing), stream=True))
    assert last["error"]["message"] == "the disk is full"


def test_a_shutdown_ends_a_stream_regularly(ask: Any) -> None:
    engine = Scripted(script(*written(b"a", ["a"]), Finished("shutdown", "", 2, 0, 1)))
    *_, last = chunks(post(ask, engine, stream=True))
    assert last["choices"][0]["finish_reason"] == "length"


def test_a_full_engine_is_429(ask: Any) -> None:
    class Full(Scripted):
        def submit(self, request: Any, deliver: Any) -> Any:
            if len(self.requests) == 2:
                raise Busy("64 texts are waiting", 2.4)
            return super().submit(request, deliver)

    engine = Full(lambda request: [PrefillFinished(1, 0)])
    answered = post(ask, engine, n=4)
    assert answered.status_code == 429
    assert answered.headers["retry-after"] == "3"
    assert answered.json()["error"]["type"] == "rate_limit_error"
    assert all(engine.cancelled.acquire(timeout=5) for _ in range(2))  # none of them is left behind


def test_confidence_comes_with_each_delta(ask: Any) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "confidence": True}
    streamed = chunks(post(ask, Scripted(answer), "chat/completions", stream=True, **body))
    assert [chunk.get("synthe") for chunk in streamed[1:-1]] == [{"confidence": 0.5}] * 3
    whole = post(ask, Scripted(answer), "chat/completions", **body).json()
    assert whole["choices"][0]["synthe"] == {"confidence": [0.5, 0.5, 0.5]}


def test_requested_usage_is_the_last_chunk(ask: Any) -> None:
    streamed = chunks(post(ask, Scripted(answer), stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in streamed[:-1])
    assert streamed[-1]["choices"] == []
    assert streamed[-1]["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert "usage" not in chunks(post(ask, Scripted(answer), stream=True))[0]


def test_text_of_tokens() -> None:
    spelled = [token_text(ByteTokenizer(), token) for token in (97, 0xC3, END, 400)]
    assert spelled == ["a", "bytes:\\xc3", "<|endoftext|>", "<400>"]
