"""Bytes as characters, as byte-level vocabularies spell them, and the tokenizer.json that has no other tokens."""

from __future__ import annotations

from functools import cache
from typing import Any

END = "<|endoftext|>"


def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes as printable characters: printable Latin-1 is itself, the rest follows from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(other)}


@cache
def byte_spelling() -> dict[int, str]:
    """Every byte as a byte-level vocabulary spells it."""
    return {byte: c for c, byte in byte_alphabet().items()}


def bytes_model() -> dict[str, Any]:
    """The tokenizer.json of `ByteTokenizer`, a byte-level model without merges: the tokenizers library gives the same
    ids."""
    token = {"id": 256, "content": END, "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token | flags],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {byte_spelling()[byte]: byte for byte in range(256)},
            "merges": [],
        },
    }


def is_bytes_model(values: Any) -> bool:
    """Whether this is `bytes_model`, or what an earlier version wrote instead."""
    if not isinstance(values, dict):
        return False
    if values.get("type") == "bytes":
        return True
    ours = bytes_model()
    model, parts = values.get("model"), ("normalizer", "pre_tokenizer", "added_tokens")
    same = isinstance(model, dict) and all(model.get(key) == ours["model"][key] for key in ("type", "vocab", "merges"))
    return same and all(values.get(part) == ours[part] for part in parts)
