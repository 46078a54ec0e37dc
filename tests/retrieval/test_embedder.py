"""Vectors of our models and of folders of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.retrieval.embedder import open_embedder
from tests.adapters.conftest import recipe_with
from tests.swarm.measure_load import new_team

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "holiday", "train", "refund", "days"]


@pytest.fixture
def sentence_model(tmp_path: Path) -> Path:
    """A BERT of random weights with a vocabulary of words, as sentence-transformers saves it."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path / "sentence"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(WORDS), intermediate_size=16, **sizes)).save_pretrained(folder)
    write_layout(folder, {"pooling_mode_mean_tokens": True}, "Transformer", "Pooling", "Normalize")
    return folder


def write_layout(folder: Path, pooling: dict[str, bool], *modules: str) -> None:
    names = [{"idx": i, "name": str(i), "path": "", "type": f"models.{name}"} for i, name in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(names))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_company_and_padding_change_nothing(sentence_model: Path) -> None:
    embedder = open_embedder(str(sentence_model))
    together = embedder.embed(["holiday", "train refund days days", "days"])
    assert together.shape == (3, 16) and not embedder.centered
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)
    for text, row in zip(["holiday", "days"], together[[0, 2]], strict=True):
        np.testing.assert_allclose(embedder.embed([text])[0], row, atol=1e-6)


def test_pooling_is_the_folders(sentence_model: Path) -> None:
    from transformers import AutoModel

    mean = open_embedder(str(sentence_model))
    write_layout(sentence_model, {"pooling_mode_cls_token": True}, "Transformer", "Pooling")
    first = open_embedder(str(sentence_model))
    assert first.name != mean.name
    tokens = torch.tensor([[2, 4, 7, 3]])
    expected = AutoModel.from_pretrained(sentence_model)(tokens).last_hidden_state[0, 0]
    np.testing.assert_allclose(first.embed(["holiday days"])[0], expected.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "modules", "message"),
    [
        ({"pooling_mode_mean_tokens": True}, ("Transformer", "Pooling", "Dense"), "Dense"),
        ({"pooling_mode_max_tokens": True}, ("Transformer", "Pooling"), "pooling_mode_max_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("Transformer", "Pooling"), "pools by"),
    ],
)
def test_other_layouts_are_refused(sentence_model: Path, pooling: dict, modules: tuple, message: str) -> None:
    write_layout(sentence_model, pooling, *modules)
    with pytest.raises(InputError, match=message):
        open_embedder(str(sentence_model))


def test_damaged_folders_are_refused_in_one_line(sentence_model: Path) -> None:
    for name, content in (("model.safetensors", b"x"), ("tokenizer.json", b"{"), ("config.json", b"{")):
        (sentence_model / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            open_embedder(str(sentence_model))
        assert "\n" not in caught.value.message
    (sentence_model / "modules.json").write_text("{}")
    with pytest.raises(InputError):
        open_embedder(str(sentence_model))


def test_a_language_model_embeds_by_the_mean_of_its_states(tmp_path: Path) -> None:
    path = new_team(tmp_path).base
    embedder = open_embedder(path)
    rows = embedder.embed(["holiday", "a train", "", "x" * 5000])
    assert rows.shape == (4, recipe_with().model.width) and embedder.centered
    np.testing.assert_allclose(embedder.embed(["a train"])[0], rows[1], atol=1e-5)
