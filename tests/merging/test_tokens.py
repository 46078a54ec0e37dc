"""Models with different tokenizers: refused, the base's vocabulary, the union, or another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from synthe_core.errors import InputError
from synthe_core.merging.tokens import union
from tests.merging.models import CONFIG, folder, llama, moved, result, run


def bpe(text: str, size: int, specials: list[str]) -> dict[str, Any]:
    """The content of a byte-level BPE tokenizer.json learnt from `text`."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = sorted(set(text.replace(" ", "Ġ")))
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text], trainer)
    return json.loads(made.to_str())


SEA, HILL = bpe("the sea the sea the shell", 20, ["<end>"]), bpe("the hill still the hill", 22, ["<end>", "<pad>"])


def ids(content: dict[str, Any]) -> dict[str, int]:
    return Tokenizer.from_str(json.dumps(content)).get_vocab(with_added_tokens=True)


def model(path: Path, tokenizer: dict[str, Any], seed: int, padded: int = 0) -> Path:
    """A model whose row for each token is made of the token's name and the seed."""
    vocab = ids(tokenizer)
    config = CONFIG | {"vocab_size": len(vocab) + padded}
    tensors = moved(llama(config), seed)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for token, row in vocab.items():
            tensors[name][row] = value(token, seed)
    folder(path, tensors, config)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


def value(token: str, seed: int) -> float:
    return sum(map(ord, token)) + seed * 1000


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [model(tmp_path / "sea", SEA, 1), model(tmp_path / "hill", HILL, 2)]


def test_different_tokenizers_need_an_option(tmp_path: Path, two: list[Path]) -> None:
    with pytest.raises(InputError, match=r"sea and .*hill have different tokenizers") as caught:
        run(tmp_path / "out", "linear", two)
    assert "--tokenizer union" in str(caught.value.hint)


def test_the_tokenizer_of_the_base(tmp_path: Path, two: list[Path]) -> None:
    ours = result(tmp_path / "out", "linear", two, tokenizer="base")
    here, there = ids(SEA), ids(HILL)
    assert ours["lm_head.weight"].shape == (len(here), 16)
    for token, row in here.items():  # what the other lacks, it has from the base
        other = value(token, 2) if token in there else value(token, 1)
        assert float(ours["model.embed_tokens.weight"][row, 0]) == pytest.approx((value(token, 1) + other) / 2)
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == SEA
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == len(here)


def test_the_union_of_the_tokenizers(tmp_path: Path, two: list[Path]) -> None:
    ours = result(tmp_path / "out", "linear", two, tokenizer={"source": "union", "pad_to_multiple_of": 8})
    here, there = ids(SEA), ids(HILL)
    merged = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    every = merged.get_vocab(with_added_tokens=True)
    assert every.keys() == here.keys() | there.keys()
    assert sorted(every.values()) == list(range(len(every)))
    assert all(every[token] == row for token, row in here.items())
    rows = ours["model.embed_tokens.weight"]
    assert rows.shape[0] % 8 == 0 and 0 <= rows.shape[0] - len(every) < 8
    for token, row in every.items():
        owners = [seed for seed, known in ((1, here), (2, there)) if token in known]
        expected = sum(value(token, seed) for seed in owners) / len(owners)
        assert float(rows[row, 3]) == pytest.approx(expected), token
    assert torch.equal(rows[len(every) :], torch.zeros(rows.shape[0] - len(every), 16))
    # text of the first is cut as before wherever it was cut as far, and of the second into its pieces
    assert merged.encode("the sea").ids == Tokenizer.from_str(json.dumps(SEA)).encode("the sea").ids
    assert merged.decode(merged.encode("the hill still").ids) == "the hill still"
    assert merged.encode("<pad>").ids == [every["<pad>"]]


def test_the_tokenizer_of_a_path(tmp_path: Path, two: list[Path]) -> None:
    ours = result(tmp_path / "out", "linear", two, tokenizer=str(two[1]))
    assert ours["lm_head.weight"].shape[0] == len(ids(HILL))
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == HILL


def test_ids_of_special_tokens_follow_the_vocabulary(tmp_path: Path, two: list[Path]) -> None:
    here, there = ids(SEA), ids(HILL)
    for name in ("config.json", "generation_config.json"):
        path = two[0] / name
        values = json.loads(path.read_text()) if path.is_file() else {}
        ends = {"eos_token_id": [here["<end>"], here["s"]], "bos_token_id": here["<end>"], "pad_token_id": None}
        path.write_text(json.dumps(values | ends | {"top_k": 5}))
    run(tmp_path / "out", "linear", two, tokenizer=str(two[1]))
    for name in ("config.json", "generation_config.json"):
        values = json.loads((tmp_path / "out" / name).read_text())
        assert values["eos_token_id"] == [there[token] for token in ("<end>", "s") if token in there]
        assert (values["bos_token_id"], values["pad_token_id"], values["top_k"]) == (there["<end>"], None, 5)


def test_padded_embeddings_of_one_tokenizer(tmp_path: Path) -> None:
    models_ = [model(tmp_path / "a", SEA, 1), model(tmp_path / "b", SEA, 2, padded=5)]
    with pytest.raises(InputError, match=r"embed_tokens\.weight"):
        run(tmp_path / "out", "linear", models_)
    ours = result(tmp_path / "out", "linear", models_, tokenizer="base")
    assert ours["lm_head.weight"].shape[0] == len(ids(SEA))


def test_no_union_of_different_kinds(tmp_path: Path, two: list[Path]) -> None:
    words = {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}, "added_tokens": []}
    with pytest.raises(InputError, match="different kinds"):
        union([SEA, words], [])
    (two[1] / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="hill has no tokenizer"):
        run(tmp_path / "out", "linear", two, tokenizer="union")


def test_sizes_that_differ_without_tokenizers_are_explained(tmp_path: Path) -> None:
    wider = CONFIG | {"vocab_size": 44}
    paths = [folder(tmp_path / "a", llama()), folder(tmp_path / "b", llama(wider), wider)]
    with pytest.raises(InputError, match=r"\[40, 16\] in .*a and \[44, 16\] in .*b") as caught:
        run(tmp_path / "out", "linear", paths)
    assert "they have 40 and 44 tokens" in str(caught.value.hint) and "--tokenizer union" in str(caught.value.hint)
