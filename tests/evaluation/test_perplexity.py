"""`eval perplexity`: the figures are the model's own, over the same text for every context."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.evaluation.perplexity import _default_contexts, evaluate
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.model import prefill
from synthe_core.storage.checkpoint import Checkpoint
from tests.evaluation.models import ATTENTION, DELTA, saved
from tests.training.conftest import _own_folders, cache, of  # noqa: F401  (fixtures)

LINE = "the rïver runs to the sea and comes again as rain on hills that remember every stone\n"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(LINE * 12)  # 1032 bytes
    return path


def contexts(events: list[Event]) -> list[dict]:
    assert isinstance(events[-1], Result)
    return events[-1].values["contexts"]  # type: ignore[return-value]


@pytest.mark.parametrize("block", [DELTA, ATTENTION])
def test_bits_per_byte_equal_those_of_the_logits(tmp_path, book, block, monkeypatch):
    monkeypatch.setattr(prefill, "PREFILL", 48)  # so that a window is read in pieces
    path = saved(tmp_path / "model", block)
    events = list(evaluate(path, sources=[str(book)], contexts=[16, 256, 64], device="cpu"))
    rows = contexts(events)
    model = Checkpoint.open(path).model().eval()
    text = torch.tensor(list(book.read_bytes()))
    assert [each["context"] for each in rows] == [16, 64, 256]
    losses = {}
    for each in rows:
        length = each["context"]
        parts = []
        for first in range(0, 1024, length):
            with torch.no_grad():
                logp = model(text[None, first : first + length])[0][0].log_softmax(-1)
            parts.append(-logp.gather(1, text[first + 1 : first + 1 + length, None])[:, 0])
        losses[length] = torch.cat(parts).double()
        bits = float(losses[length].sum()) / math.log(2) / 1024
        assert each["tokens"] == each["bytes"] == 1024 and each["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
        assert each["perplexity"] == pytest.approx(2**bits, rel=1e-4)
    spans = [(each["first"], each["last"]) for each in rows]
    assert spans == [(0, 16), (16, 64), (64, 256)]
    for each in rows:
        here = losses[256].view(4, 256)[:, each["first"] : each["last"]]
        assert each["here"] == pytest.approx(float(here.mean()) / math.log(2), rel=1e-5)
    last = of(events, Progress)[-1]
    assert last.done == last.total == 3 * 1024
    assert any("trained on 64 tokens; longer contexts run as they are" in event.message for event in of(events, Notice))


def test_a_part_of_the_text_is_spread_over_it(tmp_path, book):
    path = saved(tmp_path / "model")
    (only,) = contexts(list(evaluate(path, sources=[str(book)], contexts=[100], tokens=350, device="cpu")))
    assert only["tokens"] == 300


def test_contexts_by_default_go_past_the_training_length(tmp_path, book):
    path = saved(tmp_path / "model")
    rows = contexts(list(evaluate(path, sources=[str(book)], device="cpu")))
    assert [each["context"] for each in rows] == [8, 16, 32, 64, 128, 256]


def test_invalid_arguments(tmp_path, book):
    path = saved(tmp_path / "model")
    with pytest.raises(InputError, match=r"the text has 1,\d+ tokens, which is no window of 5,000"):
        list(evaluate(path, sources=[str(book)], contexts=[5000], device="cpu"))
    with pytest.raises(InputError, match="context 100 does not divide 256"):
        list(evaluate(path, sources=[str(book)], contexts=[100, 256], device="cpu"))
    events = list(evaluate(path, sources=[str(book)], contexts=[128, 4096], device="cpu"))
    assert any("longer contexts are left out" in event.message for event in of(events, Notice))


def test_default_contexts_are_no_longer_than_the_text_to_read_nor_a_published_limit() -> None:
    assert _default_contexts(64, 10**6, None) == [8, 16, 32, 64, 128, 256]
    assert _default_contexts(64, 100, None) == [8, 16, 32, 64]
    assert _default_contexts(8192, 4096, 8192) == [1024, 2048, 4096]
    assert _default_contexts(8192, 10**6, 8192) == [1024, 2048, 4096, 8192]
    assert _default_contexts(8192, 10, None) == [1024]
