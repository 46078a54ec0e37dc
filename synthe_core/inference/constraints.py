"""Which tokens may come next: JSON that obeys a schema (by the library llguidance), or a set for the first token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError, WorkError

INSTALL_HINT = "pip install llguidance"
JSON_FORMAT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The layout of the JSON. If any white space were allowed, a small model might generate nothing else for ever."""
MAX_SCHEMAS = 64
"""Compiled schemas that are kept for the next request with the same one."""


class Constraint(Protocol):
    """What one sequence may generate."""

    @property
    def done(self) -> bool:
        """Whether the text is complete, and nothing may follow."""
        ...

    def allowed_tokens(self) -> Tensor | None:
        """bool [V]: the tokens that may come next; None for all."""
        ...

    def accept(self, token_id: int) -> None:
        """Records the generated token."""
        ...


class FirstTokenConstraint:
    """Restricts the first token to `allowed`, bool [V]."""

    done = False

    def __init__(self, allowed: Tensor) -> None:
        self._allowed: Tensor | None = allowed

    def allowed_tokens(self) -> Tensor | None:
        return self._allowed

    def accept(self, token_id: int) -> None:
        self._allowed = None


class JsonSchemaConstraint:
    """A position in the grammar of a JSON schema. `matcher` is llguidance's, of this sequence alone."""

    def __init__(self, matcher: Any, vocab: int) -> None:
        self._matcher, self._vocab = matcher, vocab
        self._bits = torch.empty((vocab + 31) // 32, dtype=torch.int32)

    @property
    def done(self) -> bool:
        return bool(self._matcher.is_stopped())

    def allowed_tokens(self) -> Tensor:
        """bool [V]. Raises WorkError where the grammar cannot be computed."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.numel() * 4)
        if error := self._matcher.get_error():
            raise WorkError(f"the JSON schema cannot be followed: {' '.join(error.split())[:200]}")
        places = torch.arange(32, dtype=torch.int32)
        return ((self._bits[:, None] >> places) & 1).bool().flatten()[: self._vocab]

    def accept(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            raise WorkError("a token was generated that the JSON schema does not allow")


def compile_json_schema(tokenizer: Tokenizer, vocab: int, schema: Mapping[str, Any]) -> JsonSchemaConstraint:
    """The constraint of a JSON schema, `{}` for any JSON. A schema that was compiled before is copied.

    Raises InputError for a schema that cannot be compiled, or if llguidance is not installed.
    """
    try:
        text = json.dumps(dict(schema))
    except (ValueError, TypeError, RecursionError) as error:
        raise _invalid(str(error)) from None
    return JsonSchemaConstraint(_compile(tokenizer, vocab, text).deep_copy(), vocab)


@lru_cache(MAX_SCHEMAS)
def _compile(tokenizer: Tokenizer, vocab: int, schema: str) -> Any:
    """A matcher at the beginning of the text, to copy from."""
    vocabulary = _vocabulary(tokenizer, vocab)
    from llguidance import LLMatcher

    try:
        matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_json_schema(schema, defaults=JSON_FORMAT))
        error = matcher.get_error()
    except (ValueError, TypeError, RecursionError) as exception:
        error = str(exception)
    if error:
        raise _invalid(error)
    return matcher


def _invalid(error: str) -> InputError:
    return InputError(f"the JSON schema is invalid: {' '.join(error.split())[:200]}")


class _Vocabulary:
    """A tokenizer in the form that llguidance asks for: the bytes of every token, and an encoder."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.end, tokenizer.begin
        self.tokens = [*tokenizer.pieces[:vocab], *[b""] * (vocab - len(tokenizer.pieces))]
        self.special_token_ids = [token for token, piece in enumerate(self.tokens) if not piece]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


@cache
def _vocabulary(tokenizer: Tokenizer, vocab: int) -> Any:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError:
        raise InputError("JSON schemas need the library llguidance", INSTALL_HINT) from None
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, vocab)), n_vocab=vocab)
