"""Which tokens may come next: text of a JSON schema or a grammar (by llguidance), or a set for the first one."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from functools import cache, cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError, WorkError
from synthe_core.inference.grammar_check import grammar_checker
from synthe_core.inference.grammar_worker import LIMITS
from synthe_core.inference.json_schema import has_finite_value
from synthe_core.inference.request import Grammar

INSTALL_HINT = "pip install llguidance"
JSON_FORMAT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The layout of the JSON. If any white space were allowed, a small model might generate nothing else for ever."""
SIMPLER = "use a simpler one: shorter patterns, smaller bounds, fewer alternatives"
MALFORMED = re.compile(r"NoExtensionBias|parse error|unimplemented|not found|does not exist|registry", re.IGNORECASE)
"""Errors of a schema or grammar that a simpler one would have as well."""
NO_TEXT = "it allows no text"
MAX_SCHEMAS = 64
"""Compiled schemas and grammars that are kept for the next request with the same one."""
NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "choice": "choice", "grammar": "grammar"}


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
    """A position in the grammar of a JSON schema, or in another. `compiled` is llguidance's matcher at the beginning of
    the text, of which the sequence makes a copy when it begins."""

    def __init__(self, compiled: Any, vocab: int, kind: str = "json_schema") -> None:
        self._compiled, self._vocab, self._kind, self._name = compiled, vocab, kind, NAMES[kind]
        self._bits = torch.empty((vocab + 31) // 32, dtype=torch.int32)

    @cached_property
    def _matcher(self) -> Any:
        return self._compiled.deep_copy()

    @property
    def done(self) -> bool:
        return bool(self._matcher.is_stopped())

    def allowed_tokens(self) -> Tensor:
        """bool [V]. Raises InputError where the grammar becomes too complex."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.numel() * 4)
        self._check()
        places = torch.arange(32, dtype=torch.int32)
        return ((self._bits[:, None] >> places) & 1).bool().flatten()[: self._vocab]

    def accept(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            self._check()
            raise WorkError(f"a token was generated that the {self._name} does not allow")

    def try_accept(self, token_id: int) -> bool:
        """Records the token if it is allowed; returns whether it is."""
        return bool(self._matcher.try_consume_tokens([token_id]))

    def restarted(self) -> JsonSchemaConstraint:
        """The same at the beginning of a text."""
        return JsonSchemaConstraint(self._compiled, self._vocab, self._kind)

    def _check(self) -> None:
        if error := self._matcher.get_error():
            raise InputError(f"the {self._name} cannot be followed further: {_shortened(error)}", SIMPLER)


def compile_json_schema(tokenizer: Tokenizer, vocab: int, schema: Mapping[str, Any]) -> JsonSchemaConstraint:
    """The constraint of a JSON schema, `{}` for any JSON. Each schema is compiled once, and first in another process,
    within bounds of time and memory. Takes a while: not for the engine's thread.

    Raises InputError for a schema that cannot be compiled or that nothing obeys, or if llguidance is not installed.
    """
    try:
        text = json.dumps(dict(schema))
        if not has_finite_value(schema):
            raise InputError(
                "the JSON schema allows no JSON of finite length",
                "what is required must be possible, and not contain itself",
            )
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidGrammar("json_schema", str(error)) from None
    return _constraint(tokenizer, vocab, "json_schema", text)


def compile_grammar(tokenizer: Tokenizer, vocab: int, grammar: Grammar) -> JsonSchemaConstraint:
    """The constraint of a regular expression, of choices or of a grammar; see `compile_json_schema`."""
    return _constraint(tokenizer, vocab, grammar.kind, grammar.text)


def _constraint(tokenizer: Tokenizer, vocab: int, kind: str, text: str) -> JsonSchemaConstraint:
    key = (tokenizer, vocab, kind, text)
    return JsonSchemaConstraint(_compiled.get(key, partial(_compile, *key)), vocab, kind)


class _OnceEach:
    """Values that take long to make, by key: whoever asks for one that is being made waits for it. An InputError is
    kept like a value."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._futures: OrderedDict[Hashable, Future[Any]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            future, is_new = self._futures.get(key), key not in self._futures
            if future is None:
                future = self._futures[key] = Future()
            self._futures.move_to_end(key)
            while len(self._futures) > self._size:
                self._futures.popitem(last=False)
        if is_new:
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, InputError):
                    with self._lock:
                        self._futures.pop(key, None)
        return future.result()


_compiled = _OnceEach(MAX_SCHEMAS)


def _compile(tokenizer: Tokenizer, vocab: int, kind: str, text: str) -> Any:
    """A matcher at the beginning of the text, to copy from."""
    vocabulary = _vocabulary(tokenizer, vocab)
    from llguidance import LLMatcher, LLParserLimits, grammar_from

    try:
        if kind == "json_schema":
            grammar = LLMatcher.grammar_from_json_schema(text, defaults=JSON_FORMAT)
        else:
            grammar = grammar_from(kind, text)  # type: ignore[arg-type]
    except (ValueError, TypeError, RecursionError) as exception:
        raise InvalidGrammar(kind, str(exception)) from None
    error = grammar_checker().error_of(grammar)
    if error is None:
        matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        error = matcher.get_error()
    if error:
        raise InvalidGrammar(kind, error)
    return matcher


class InvalidGrammar(InputError):
    """A schema or grammar that cannot be compiled. reason: the message without details, which may quote it."""

    def __init__(self, kind: str, error: str) -> None:
        self.reason = f"the {NAMES[kind]} is invalid"
        text = NO_TEXT if "NoExtensionBias" in error else _shortened(error)
        super().__init__(f"{self.reason}: {text}", None if MALFORMED.search(error) else SIMPLER)


def _shortened(error: str) -> str:
    return " ".join(error.replace("<non-verbose/>", "").split())[:200]


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
        raise InputError("JSON schemas and grammars need the library llguidance", INSTALL_HINT) from None
    ends = [tokenizer.end, *sorted(end for end in tokenizer.stops if end < vocab)]
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, vocab)), n_vocab=vocab, eos_token=ends)
