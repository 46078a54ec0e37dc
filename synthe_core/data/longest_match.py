"""A tokenizer that takes the longest token of its vocabulary at every byte, as RWKV's World tokenizer does."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from synthe_core.data.byte_level import byte_alphabet, byte_spelling
from synthe_core.data.tokenizer import Tokenizer, as_bytes, as_json
from synthe_core.data.tokenizer_limits import MAX_WORD

ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})|\\([^x])|([^\\]+)", re.DOTALL)
NAMED = {"t": b"\t", "n": b"\n", "r": b"\r"}
PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


class LongestMatchTokenizer(Tokenizer):
    """From left to right the longest token that the text goes on with, whatever comes after it; nothing is normalised.

    vocabulary: the bytes of tokens by id; every single byte is among them. specials: the names of tokens that stand
    for no text, by id; `end` is one of them. ValueError for a byte without a token, and for a token that is there
    twice.

    Its tokenizer.json is a WordPiece model without prefixes over the characters of a byte-level alphabet: the
    tokenizers library gives the same ids for texts of up to 10,000 bytes, in a time that grows with the cube of them.
    """

    reads_bytes = True

    def __init__(self, vocabulary: Mapping[int, bytes], specials: Mapping[int, str], name: str, end: int) -> None:
        if any(type(i) is not int or i < 0 for i in (*vocabulary, *specials)) or not all(vocabulary.values()):
            raise ValueError("a token is empty, or its id is no whole number")
        self._ids = {token: i for i, token in vocabulary.items()}
        if len(self._ids) < len(vocabulary):
            raise ValueError("a token is there twice")
        if missing := next((byte for byte in range(256) if bytes([byte]) not in self._ids), None):
            raise ValueError(f"the byte {missing} has no token")
        self.specials = dict(specials)
        if end not in self.specials or self.specials.keys() & vocabulary.keys():
            raise ValueError(f"token {end} does not end a text")
        self.name, self.end = name, end
        self.vocab_size = max(*vocabulary, *specials) + 1
        self.pieces = [vocabulary.get(i, b"") for i in range(self.vocab_size)]
        lengths: dict[bytes, set[int]] = {}
        for token in self._ids:
            lengths.setdefault(token[:2], set()).add(len(token))
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items() if len(first) == 2}
        self.digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.specials)

    def encode(self, text: str | bytes) -> list[int]:
        data, ids, lengths = as_bytes(text), self._ids, self._lengths
        tokens, at, end = [], 0, len(data)
        while at < end:
            for length in lengths.get(data[at : at + 2], ()):
                if (token := ids.get(data[at : at + length])) is not None:
                    break
            else:
                length, token = 1, ids[data[at : at + 1]]
            tokens.append(token)
            at += length
        return tokens

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        return [np.array(self.encode(text), dtype=np.int64) for text in texts]

    def encode_marked(self, text: str) -> list[int]:
        return [i for each, special in self._sections(text) for i in ([special] if each is None else self.encode(each))]

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """A token that begins or ends within a character has all of that character."""
        tokens, places, start = [], [], 0
        for section, special in self._sections(text):
            if section is None:
                tokens.append(special)
                places.append((start, start := start + len(self.specials[special])))
                continue
            character = np.repeat(np.arange(len(section)), [len(as_bytes(each)) for each in section])
            at = 0
            for token in self.encode(section):
                last = at + len(self.pieces[token])
                tokens.append(token)
                places.append((start + int(character[at]), start + int(character[last - 1]) + 1))
                at = last
            start += len(section)
        return tokens, places

    def _sections(self, text: str) -> list[tuple[str | None, int]]:
        """The text between the names of special tokens, and None with the token for each of these."""
        sections: list[tuple[str | None, int]] = [(text, -1)]
        for token, name in self.specials.items():
            cut: list[tuple[str | None, int]] = []
            for section, special in sections:
                parts: list[str | None] = [section] if section is None else list(section.split(name))
                for i, part in enumerate(parts):
                    cut += [(None, token)] if i else []
                    cut += [(part, special)] if part != "" else []
            sections = cut
        return sections

    def spelling(self, token: int) -> str:
        if token in self.specials:
            return self.specials[token]
        return "".join(byte_spelling()[byte] for byte in self.pieces[token]) if 0 <= token < self.vocab_size else ""

    def to_json(self) -> str:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        tokens = (i for i in range(self.vocab_size) if self.pieces[i] or i in self.specials)
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": name, **flags} for i, name in sorted(self.specials.items())],
            "normalizer": None,
            "pre_tokenizer": PRE_TOKENIZER,
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "WordPiece",
                "unk_token": self.specials[self.end],
                "continuing_subword_prefix": "",
                "max_input_chars_per_word": MAX_WORD,
                "vocab": {self.spelling(i): i for i in tokens},
            },
        }
        return as_json(content)

    @cached_property
    def names(self) -> dict[str, int]:
        """Every token by what it is called."""
        return {self.spelling(i): i for i in range(self.vocab_size) if self.pieces[i] or i in self.specials}


def is_longest_match(values: Any) -> bool:
    """Whether a tokenizer.json is one of these."""
    if not isinstance(values, dict) or not isinstance(model := values.get("model"), dict):
        return False
    plain = model.get("type") == "WordPiece" and model.get("continuing_subword_prefix") == ""
    return plain and values.get("pre_tokenizer") == PRE_TOKENIZER and values.get("normalizer") is None


def read_longest_match(values: dict[str, Any], name: str, end: str | None = None) -> LongestMatchTokenizer:
    """The tokenizer of what a tokenizer.json holds. end: the name of the token that ends a text. ValueError for one
    that is none of these; KeyError for a character that stands for no byte."""
    specials = {each["id"]: str(each["content"]) for each in values["added_tokens"]}
    alphabet = byte_alphabet()
    vocabulary = {
        i: bytes(alphabet[character] for character in spelling)
        for spelling, i in values["model"]["vocab"].items()
        if i not in specials
    }
    ids = {content: i for i, content in specials.items()}
    token = ids.get(end or "", ids.get(values["model"]["unk_token"]))
    if token is None:
        raise ValueError("no token ends a text")
    return LongestMatchTokenizer(vocabulary, specials, name, token)


def escaped(token: bytes) -> str:
    """A token as GGUF files write it: as Python writes bytes, without quotes."""
    return repr(token)[2:-1]


def unescaped(text: str) -> bytes:
    r"""The bytes of a token of a GGUF file: \t, \n, \r, \xNN, and any other character after a backslash for itself.
    ValueError for half an escape."""
    data, at = bytearray(), 0
    while at < len(text):
        if (part := ESCAPE.match(text, at)) is None:
            raise ValueError("half an escape")
        code, other, plain = part.groups()
        data += bytes([int(code, 16)]) if code else NAMED.get(other, other.encode()) if other else plain.encode()
        at = part.end()
    return bytes(data)
