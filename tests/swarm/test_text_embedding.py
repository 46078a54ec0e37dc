"""Embeddings of texts by a base's first blocks: each text's own, whatever is read beside it, and read once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.interop.load import load_model
from synthe_core.swarm.text_embedding import MAX_TEXTS, TextEmbedder

TEXTS = ["a river", "", "some other, longer text about the sea and its fish", "x" * 400, *map(str, range(MAX_TEXTS))]


@pytest.fixture
def engine(base: Path) -> Iterator[AsyncEngine]:
    with AsyncEngine([load_model(base, "base")]) as engine:
        yield engine


def test_it_is_the_mean_of_what_the_first_blocks_make_of_the_tokens(engine: AsyncEngine) -> None:
    model = engine.models["base"]
    (row,) = TextEmbedder(engine, "base", blocks=1)(["a river"])
    tokens = torch.tensor([model.tokenizer.encode("a river")])
    outputs = []
    hook = model.model.blocks[0].register_forward_hook(lambda *given: outputs.append(given[-1][0]))
    with torch.inference_mode():
        model.forward(tokens, None)
    hook.remove()
    expected = model.model.norm(outputs[0]).float().mean(1)[0]
    assert np.allclose(row, expected.detach().numpy(), atol=1e-5)


def test_a_text_has_the_same_embedding_alone_and_beside_others(engine: AsyncEngine) -> None:
    together, alone = TextEmbedder(engine, "base"), TextEmbedder(engine, "base")
    rows = together(TEXTS)
    assert np.allclose(rows, np.concatenate([alone([text]) for text in TEXTS]), atol=1e-5)
    assert not np.allclose(rows[0], rows[2], atol=1e-2)


def test_threads_share_passes_and_each_gets_its_own(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = TextEmbedder(engine, "base")
    expected = {text: TextEmbedder(engine, "base")([text])[0] for text in TEXTS}
    passes: list[int] = []
    read = embed._read
    monkeypatch.setattr(embed, "_read", lambda texts: passes.append(len(texts)) or read(texts))
    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(lambda text: embed([text])[0], TEXTS * 3))
    assert all(np.allclose(row, expected[text], atol=1e-5) for text, row in zip(TEXTS * 3, rows, strict=True))
    passes.clear()
    embed(TEXTS)
    assert not passes, "what was read is remembered"


def test_its_name_says_how_deep_it_reads(engine: AsyncEngine) -> None:
    names = {TextEmbedder(engine, "base", blocks=count).name for count in (1, 2, None)}
    assert len(names) >= 2 and all(
        name.startswith(engine.registry.resolve("base").fingerprints.weights) for name in names
    )


def test_an_error_of_the_pass_is_everybodys_who_waits(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = TextEmbedder(engine, "base")

    def fail(texts: object) -> np.ndarray:
        raise ZeroDivisionError

    monkeypatch.setattr(embed, "_read", fail)
    with pytest.raises(ZeroDivisionError):
        embed(["a", "b"])
