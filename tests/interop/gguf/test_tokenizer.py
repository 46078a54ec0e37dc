"""Tokenizers through a GGUF file: the same ids, begin, ends and template as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from synthe_core.data.tokenizers import FileTokenizer, load_tokenizer
from synthe_core.errors import InputError
from synthe_core.interop.gguf.export_tokenizer import SAMPLES, MetadataOf, tokenizer_metadata
from synthe_core.interop.gguf.tokenizer import PATTERNS, tokenizer_of
from tests.paths import SHARED

TEXTS = [*SAMPLES, "", " ", "\n", "times 2024 is THE sea's", "a\u2581b", "\U0001f9ea\u200d", "x" * 300]


def byte_level(*patterns: str) -> FileTokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Split(tokenizers.Regex(each), "isolated") for each in patterns]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not patterns)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*cuts, level])
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<|im_end|>"], show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator([*SAMPLES, "times is times is THE sea's 2024 "] * 9, trainer)
    return FileTokenizer(inner, "made", begin="<s>", end="</s>")


def sentencepiece() -> FileTokenizer:
    """BPE with a fallback to bytes, as Llama 2 has."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *pieces])}
    merges = []
    for token in ("\u2581", *"abcdefghijklmnopqrstuvwxyz"):
        vocab[token] = len(vocab)
    for a, b in (("\u2581", "t"), ("i", "s"), ("\u2581t", "h"), ("\u2581th", "e"), ("e", "a"), ("s", "ea")):
        merges.append((a, b))
        vocab[a + b] = len(vocab)
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(parts)
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return FileTokenizer(inner, "made", begin="<s>", end="</s>")


def through(tokenizer: Any, vocab: int) -> FileTokenizer:
    return tokenizer_of(MetadataOf(Path("model.gguf"), tokenizer_metadata(tokenizer, vocab, Path("model.gguf"))))


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "gpt-4o"])
def test_byte_level_tokenizers_survive(pre: str) -> None:
    ours = byte_level(*PATTERNS[pre])
    ours.chat_template = "{{ messages[0].content }}"
    back = through(ours, ours.vocab_size)
    for text in TEXTS:
        assert back.encode(text) == ours.encode(text)
        assert back.decode(ours.encode(text)) == text
    assert (back.begin, back.end, back.chat_template) == (ours.begin, ours.end, ours.chat_template)
    assert back.encode_marked("a<|im_end|>") == ours.encode_marked("a<|im_end|>")
    assert ours.encode_marked("<|im_end|>")[0] in back.ends


def test_pieces_with_a_fallback_to_bytes_survive() -> None:
    ours = sentencepiece()
    back = through(ours, ours.vocab_size)
    for text in TEXTS:
        assert back.encode(text) == ours.encode(text)
    assert back.begin == ours.begin and back.end == ours.end


def test_a_larger_vocabulary_is_filled_with_unused_tokens() -> None:
    ours = byte_level(*PATTERNS["gpt-2"])
    back = through(ours, ours.vocab_size + 30)
    assert back.encode(SAMPLES[0]) == ours.encode(SAMPLES[0])


def test_a_cut_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="no name in the GGUF format"):
        tokenizer_metadata(byte_level(r"[aeiou]", r"\s"), 600, Path("model.gguf"))


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox-20b"])
def test_published_tokenizers_survive(name: str) -> None:
    path = SHARED / "data" / "tokenizers" / name
    if not path.exists():
        pytest.skip("needs the shared data")
    ours = load_tokenizer(path)
    back = through(ours, ours.vocab_size)
    for text in TEXTS:
        assert back.encode(text) == ours.encode(text)
