"""Drafts over HTTP: the same answers, and the figures of what was drafted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.speculation.ngram import NgramProposer
from synthe_core.inference.speculation.proposer import Speculation
from tests.serving.api.test_response_format import chunks

BODY = {"prompt": "ab ab ab ab ab ab", "max_tokens": 60, "temperature": 0, "ignore_eos": True, "logprobs": 1}


def test_answers_and_figures(checkpoints: Path, ask: Callable[..., TestClient]) -> None:
    plain, drafted = (LoadedModel.load(checkpoints / "plain", name) for name in ("plain", "drafted"))
    drafted.speculation = Speculation(NgramProposer(), always=True)
    lines: list[str] = []
    with AsyncEngine([plain, drafted]) as engine:
        client = ask(engine, log=lines.append)
        answers: list[Any] = [
            client.post("/v1/completions", json={"model": name, **BODY}).json() for name in ("plain", "drafted")
        ]
        assert [each["text"] for each in answers[0]["choices"]] == [each["text"] for each in answers[1]["choices"]]
        assert "completion_tokens_details" not in answers[0]["usage"]
        usage = answers[1]["usage"]
        details = usage["completion_tokens_details"]
        accepted, rejected = details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]
        assert usage["completion_tokens"] == 60 and accepted > 0 and accepted + rejected > 0
        streamed = {"model": "drafted", **BODY, "stream": True, "stream_options": {"include_usage": True}}
        parts = chunks(client.post("/v1/completions", json=streamed))
        assert parts[-1]["usage"]["completion_tokens_details"] == details
        assert "".join(each["choices"][0]["text"] for each in parts[:-1]) == answers[1]["choices"][0]["text"]
        status = client.get("/api/status").json()
        assert status["speculation"] == {"drafted": "ngram"}
        assert (status["drafted_tokens"], status["accepted_tokens"]) == (2 * (accepted + rejected), 2 * accepted)
        text = client.get("/metrics").text
        for name, number in (("drafted", 2 * (accepted + rejected)), ("accepted", 2 * accepted)):
            assert re.search(rf'^synthe_{name}_tokens_total{{model="drafted"}} {number}\.0$', text, re.M)
        listed = {each["id"]: each["synthe"]["speculation"] for each in client.get("/v1/models").json()["data"]}
        assert listed == {"plain": None, "drafted": "ngram"}
    assert any(f"{accepted} of {accepted + rejected} drafted" in line for line in lines)
