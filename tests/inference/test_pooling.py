"""Embeddings are read as prompts are: in chunks, beside others, with a place of their own."""

from __future__ import annotations

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.engine import Engine
from synthe_core.inference.outputs import Finished, PooledOutput
from synthe_core.inference.request import Busy, Request
from tests.inference.conftest import output_ids

TEXT = tuple(b"a text that is longer than one chunk of a prompt, " * 14)  # 700 tokens


def pool(tokens=TEXT, **more):
    return Request("memory", tuple(tokens), max_tokens=0, pooling=True, **more)


def test_a_text_is_read_in_the_chunks_of_prompts(memory, monkeypatch):
    lengths: list[int] = []
    forward = type(memory).forward

    def recorded(self, tokens, state, *rest):
        lengths.append(tokens.shape[1])
        return forward(self, tokens, state, *rest)

    monkeypatch.setattr(type(memory), "forward", recorded)
    with AsyncEngine([memory], max_state_bytes=1 << 28) as engine:
        (given,) = engine.embed("memory", [TEXT])
    assert len(lengths) == 4 and max(lengths) == engine.engine.config.chunk_size == 256
    expected = memory.model.hidden(torch.tensor([TEXT]))[0].float().mean(1)[0]
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def test_others_go_on_and_company_changes_nothing(engine, ask):
    (alone,) = engine.embed("memory", [TEXT])
    whole = output_ids(engine.submit(ask(count=30)))
    handle = engine.submit(ask(count=30))
    together = engine.embed("memory", [TEXT, TEXT[:33], TEXT])
    assert output_ids(handle) == whole
    assert torch.equal(together[0], alone) and torch.equal(together[2], alone)


def test_a_text_takes_nothing_from_the_cache_and_leaves_nothing_there(memory, ask):
    with AsyncEngine([memory], max_state_bytes=1 << 28) as engine:
        engine.embed("memory", [TEXT])
        assert engine.status()["cache"]["entries"] == 0
        list(engine.submit(ask(TEXT, count=1)))
        before = engine.status()["cache"]["entries"]
        handle = engine.submit(pool())
        assert [type(each).__name__ for each in handle] == ["PrefillFinished", "PooledOutput", "Finished"]
        assert engine.status()["cache"]["entries"] == before > 0


def test_texts_count_in_admission_until_they_are_read(memory):
    """One at a time, and no more waiting than may; given up, it leaves before it is read to the end."""
    engine = Engine([memory], max_num_seqs=1, max_waiting=1, max_state_bytes=1 << 28)
    outputs: list[object] = []
    first, second = (engine.add_request(pool(), lambda output: bool(outputs.append(output))) for _ in range(2))
    engine.step()
    assert (engine.admission.num_running, engine.admission.num_waiting) == (1, 1)
    with pytest.raises(Busy):
        engine.make_sequence(pool(), lambda output: False)
    engine.abort(first)
    assert first.num_computed_tokens == 256 and outputs == [Finished("cancelled", "", 700, 0, 0)]
    while engine.has_work:
        engine.step()
    assert isinstance(outputs[-2], PooledOutput) and second.finish_reason == "length"
    assert engine.admission.num_running == engine.admission.state_bytes == 0


def test_what_cannot_be_read_is_refused(engine):
    for text in ((), (1 << 20,), (-1,)):
        with pytest.raises(InputError):
            engine.embed("memory", [b"fine", text])
