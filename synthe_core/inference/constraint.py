"""Text that obeys a JSON schema: which tokens may come next, by the library llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError, SyntheError, WorkError

MISSING = "pip install llguidance"
COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is laid out. With any white space allowed, a small model may write nothing else for ever."""


class _Vocabulary:
    """A tokenizer as llguidance asks for one: the bytes of every token, and how to make tokens of bytes."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.end, tokenizer.begin
        self.tokens = [*tokenizer.pieces[:vocab], *[b""] * (vocab - len(tokenizer.pieces))]
        self.special_token_ids = [token for token, piece in enumerate(self.tokens) if not piece]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


@cache
def _known(tokenizer: Tokenizer, vocab: int) -> Any:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError:
        raise InputError("text that obeys a schema needs the library llguidance", MISSING) from None
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, vocab)), n_vocab=vocab)


class Constraint:
    """One row's way through a JSON schema, `{}` for any JSON."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, schema: Mapping[str, Any]) -> None:
        known = _known(tokenizer, vocab)
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(dict(schema)), defaults=COMPACT)
            self._matcher = LLMatcher(known, grammar)
            fault = self._matcher.get_error()
        except (ValueError, TypeError, RecursionError) as error:
            fault = str(error)
        if fault:
            raise InputError(f"the schema cannot be obeyed: {' '.join(fault.split())[:200]}")
        self._bits = torch.empty((vocab + 31) // 32, dtype=torch.int32)
        self._vocab = vocab

    @property
    def done(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> Tensor:
        """bool [V]: the tokens that may come next."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.numel() * 4)
        if fault := self._matcher.get_error():
            raise WorkError(f"the schema led nowhere: {' '.join(fault.split())[:200]}")
        places = torch.arange(32, dtype=torch.int32)
        return ((self._bits[:, None] >> places) & 1).bool().flatten()[: self._vocab]

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise SyntheError("a token was written that the schema does not allow")
