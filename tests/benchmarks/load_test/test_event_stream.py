"""Server-sent events in pieces of any size: lines end at CR, LF or both, and at nothing else."""

from __future__ import annotations

import json

import httpx
import pytest

from synthe_core.benchmarks.load_test.event_stream import EventStreamDecoder
from synthe_core.chat.remote import _events

TEXTS = ["one\u2028two", "next\u0085line\u2029", "\v\f\x1c\x1d\x1e", "日本 \U0001f600", "plain"]
DATA = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_every_event_comes_whole(end: str, size: int) -> None:
    stream = "".join(f": note{end}event: x{end}data: {data}{end}{end}" for data in DATA) + "data:last"
    content, decoder, seen = stream.encode(), EventStreamDecoder(), []
    for start in range(0, len(content), size):
        seen += decoder.push(content[start : start + size])
    assert seen == DATA
    assert decoder.flush() == ["last"] and decoder.flush() == []


def test_a_conversation_reads_line_separators() -> None:
    content = "".join(f"data: {data}\n\n" for data in [*DATA, "[DONE]"]).encode()
    response = httpx.Response(200, content=content)
    assert [event["text"] for event in _events(response)] == TEXTS
