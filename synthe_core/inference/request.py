"""What a caller asks the engine for, and the errors that a request meets before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from synthe_core.data.tool_calls.format import ToolFormat
from synthe_core.errors import InputError, SyntheError
from synthe_core.inference.sampling_params import SamplingParams


@dataclass(frozen=True)
class Grammar:
    """What a text obeys: a regular expression, one of several strings (a JSON list of them), or a context-free grammar
    in the form of Lark or GBNF."""

    kind: Literal["regex", "choice", "grammar"]
    text: str


@dataclass(frozen=True)
class ToolUse:
    """The calls that a text may have.

    form:     how the model writes calls.
    schema:   of the JSON of a call, or of a list of calls where the format has one.
    required: whether the text is a call; otherwise it may be one, or end with one.
    parallel: whether several calls may follow each other.
    text:     the JSON Schema of a text that is no call; None for any text.
    """

    form: ToolFormat
    schema: Mapping[str, Any] = field(hash=False, compare=False)
    required: bool = False
    parallel: bool = True
    text: Mapping[str, Any] | None = field(default=None, hash=False, compare=False)


@dataclass(frozen=True)
class Request:
    """One text to continue.

    model:             the name it is served under; `base:adapter` for the base with an adapter.
    prompt_token_ids:  tokens to read. With a `session_id`, the tokens after those that the session has read.
    max_tokens:        the largest number of tokens to generate; 0 reads the prompt only.
    min_tokens:        no end token, stop token or stop string ends the text before it has that many tokens.
    stop:              the text ends before the first of these strings. The engine itself never sees text: the
                       caller's detokenizer looks for them.
    stop_token_ids:    the text ends before the first of these tokens, which counts as generated.
    seed:              the same seed gives the same text, whatever else is running.
    logprobs:          how many of the likeliest tokens each output token reports; None reports none.
    return_logprob:    each output token carries its log-probability and the model's confidence.
    prompt_logprobs:   the prompt's own tokens are reported too, with their log-probabilities where `logprobs` is given.
    session_id:        a saved conversation to continue; it is saved again at the end.
    json_schema:       the text is JSON that obeys this schema; `{}` allows any JSON.
    grammar:           the text obeys this grammar, where the request has no schema.
    tool_use:          the text may call tools, where the request has neither.
    ignore_eos:        generation goes on after an end-of-text token.
    cache_breakpoints: lengths of prefixes of the prompt that other requests share. The state at each is cached.
    client:            who sends it. Clients get equal shares of the engine, however much each of them asks for.
    pooling:           the mean of the prompt's hidden states is reported; with `max_tokens` 0.
    owner:             whose it is: sessions and cached states are shared within an owner only. "" is everybody where
                       there are no owners.
    """

    model: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int = 16
    sampling: SamplingParams = field(default_factory=SamplingParams)
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0
    logprobs: int | None = None
    return_logprob: bool = True
    prompt_logprobs: bool = False
    session_id: str | None = None
    json_schema: Mapping[str, Any] | None = None
    grammar: Grammar | None = None
    tool_use: ToolUse | None = None
    ignore_eos: bool = False
    cache_breakpoints: tuple[int, ...] = ()
    client: str = ""
    pooling: bool = False
    owner: str = ""

    @property
    def is_constrained(self) -> bool:
        """Whether a schema or grammar is compiled for it, which takes a while."""
        return not (self.json_schema is None and self.grammar is None and self.tool_use is None)


class Busy(SyntheError):
    """There is no room for another request now; there may be in `retry` seconds."""

    def __init__(self, message: str, retry: float) -> None:
        super().__init__(message, f"try again in {retry:.0f} s")
        self.retry = retry


class ContextLengthExceeded(InputError):
    """The text and what is to be generated are longer than the model, or the server, can read."""

    code = "context_length_exceeded"


class NotFound(InputError):
    """No model, adapter or session has that name."""


class QuotaExceeded(SyntheError):
    """The owner has as much stored as it may."""
