"""The text of tokens that come one by one."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol


class Vocabulary(Protocol):
    """What a decoder reads of a tokenizer."""

    vocab_size: int

    @property
    def pieces(self) -> list[bytes]: ...

    def bytes_of(self, ids: Iterable[int]) -> bytes: ...

    def spelling(self, token: int) -> str: ...


class Decoder:
    """Decodes tokens one by one: bytes of an incomplete character are delayed."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: int | Iterable[int]) -> str:
        """The text that is complete with these tokens; "" while a character is unfinished."""
        return self._utf8.decode(self._tokenizer.bytes_of([ids] if isinstance(ids, int) else ids))

    def special(self, token: int) -> str | None:
        """The name of a token that stands for no text; None for any other."""
        tokenizer = self._tokenizer
        return tokenizer.spelling(token) if 0 <= token < tokenizer.vocab_size and not tokenizer.pieces[token] else None

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never was completed."""
        return self._utf8.decode(b"", final=True)
