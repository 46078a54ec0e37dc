"""The tokenizer of a merge of our own checkpoints, with all its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from synthe_core.data.tokenizers import ByteTokenizer, FileTokenizer
from synthe_core.errors import InputError
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.manifest import FileDigest
from tests.evaluation.models import saved
from tests.merging.models import run


def subwords(text: str, *specials: str) -> FileTokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator([text] * 20, trainer)
    tokenizer = FileTokenizer(inner, "t", begin="<s>", end="<|stop|>")
    turn = inner.token_to_id("<|turn|>")
    assert turn is not None
    tokenizer.stops = frozenset({turn})
    tokenizer.special_tokens = {"bos_token": "<s>", "eos_token": "<|turn|>"}
    tokenizer.chat_template, tokenizer.sampling = "{{ messages[0].content }}", {"temperature": 0.5}
    return tokenizer


def merged(tmp_path: Path, **more: Any) -> FileTokenizer:
    names = ("<s>", "<|stop|>", "<|turn|>")
    first, second = subwords("the sea the shell", *names), subwords("hill still", *reversed(names))
    paths = [
        saved(tmp_path / name, tokenizer=each, vocab=each.vocab_size) for name, each in (("a", first), ("b", second))
    ]
    run(tmp_path / "out", "linear", paths, **more)
    result = Checkpoint.open(tmp_path / "out").tokenizer()
    assert isinstance(result, FileTokenizer)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert library.get_vocab() == result._inner.get_vocab()
    return result


def facts(tokenizer: FileTokenizer) -> Any:
    names = [tokenizer.spelling(i) for i in (tokenizer.begin or 0, tokenizer.end, *tokenizer.stops)]
    return names, tokenizer.named_tokens, tokenizer.chat_template, tokenizer.sampling


def test_names_stay_when_ids_change(tmp_path: Path) -> None:
    expected = facts(subwords("x", "<s>", "<|stop|>", "<|turn|>"))
    assert facts(merged(tmp_path / "base", tokenizer="base")) == expected
    assert facts(merged(tmp_path / "union", tokenizer="union")) == expected
    other = merged(tmp_path / "other", tokenizer=str(tmp_path / "other" / "b"))
    assert facts(other) == expected and (other.begin, other.end, other.stops) == (2, 1, frozenset({0}))


def test_bytes_of_an_earlier_version(tmp_path: Path) -> None:
    paths = [saved(tmp_path / name) for name in ("a", "b")]
    run(tmp_path / "out", "linear", paths)
    assert isinstance(Checkpoint.open(tmp_path / "out").tokenizer(), ByteTokenizer)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab_size() == 257


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"\x00\xff", b'{"version": ', b"[" * 100_000])
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    """The manifest says so too, so that the digest is right and the content is not."""
    paths = [saved(tmp_path / name, tokenizer=ByteTokenizer(), vocab=257) for name in "ab"]
    file = paths[1] / "tokenizer.json"
    file.write_bytes(content)
    manifest = json.loads((paths[1] / "manifest.json").read_text())
    manifest["files"][file.name] = FileDigest.of(file).model_dump()
    (paths[1] / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"b/tokenizer\.json is damaged: it is no JSON object"):
        run(tmp_path / "out", "linear", paths)
