"""What is asked of the engine, and what it tells while it answers. No network here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from synthe_core.errors import InputError, SyntheError
from synthe_core.inference.sampling import Sampling

Reason = Literal["stop", "length", "cancelled", "refused", "failed", "shutdown"]


@dataclass(frozen=True)
class Request:
    """One text to be continued.

    model:    the name that it is served under; `base:adapter` for the base with an adapter.
    prompt:   tokens to read before writing. With a `session`, those that come after what the session has read.
    count:    the most tokens to write; 0 reads only.
    stop:     the text ends before the first of these.
    seed:     the same seed gives the same text, whatever else is being served.
    logprobs: how many of the likeliest tokens to tell of beside each one that is written; None tells no probability.
    told:     the prompt's own tokens are told too (`Told`), with their probabilities where `logprobs` is given.
    session:  the name of a saved conversation to go on from; kept again under that name at the end.
    schema:   a JSON schema that the text is to obey, `{}` for any JSON.
    to_the_end: writes on past the tokenizer's end of document.
    """

    model: str
    prompt: tuple[int, ...]
    count: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: int | None = None
    told: bool = False
    session: str | None = None
    schema: Mapping[str, Any] | None = None
    to_the_end: bool = False


@dataclass(frozen=True)
class Chance:
    """A token and the natural logarithm of the probability that the model gave it, before sampling's filters."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Started:
    """The prompt is read: `cached` of its `prompt` tokens (a session's past counts) were known and cost nothing."""

    prompt: int
    cached: int


@dataclass(frozen=True)
class Told:
    """A token of the prompt. chance: None for the first, which nothing foretells, and where no logprobs are asked."""

    token: int
    chance: Chance | None
    top: tuple[Chance, ...] = ()


@dataclass(frozen=True)
class Written:
    """A new token, and the text that is sure to stand by now ("" while a character or a stop string may be unfinished).

    confidence: the model's own estimate that its likeliest token is right, or that token's probability where the model
    has no head for it.
    """

    token: int
    text: str
    chance: Chance
    top: tuple[Chance, ...] = ()
    confidence: float = 0.0


@dataclass(frozen=True)
class Finished:
    """The last event of every request. text: what was held back. message: why, where it failed, or was refused for its
    own fault."""

    reason: Reason
    text: str
    prompt: int
    cached: int
    written: int
    message: str = ""


Event = Started | Told | Written | Finished


class Busy(SyntheError):
    """There is no room for another request just now; `retry` in seconds is when there may be."""

    def __init__(self, message: str, retry: float) -> None:
        super().__init__(message, f"try again in {retry:.0f} s")
        self.retry = retry


class NoSuch(InputError):
    """There is no model, adapter or session of that name."""
