"""What the engine reports about a sequence while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from synthe_core.errors import WorkError

FinishReason = Literal["stop", "length", "cancelled", "refused", "error", "shutdown"]


@dataclass(frozen=True)
class Logprob:
    """A token and its log-probability (natural logarithm) under the model, before sampling's filters."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class PrefillFinished:
    """The prompt is read. `num_cached_tokens` of its `num_prompt_tokens` (a session's past included) cost nothing."""

    num_prompt_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True)
class PromptLogprob:
    """A token of the prompt. logprob: None for the first token, and where no logprobs are requested."""

    token_id: int
    logprob: Logprob | None
    top_logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class TokenOutput:
    """A generated token.

    text: what the caller's detokenizer releases with it; the engine leaves it empty.
    logprob, confidence: None unless the request returns them. confidence is the model's own estimate that its
    likeliest token is right, or that token's probability if the model has no confidence head.
    """

    token_id: int
    text: str = ""
    logprob: Logprob | None = None
    top_logprobs: tuple[Logprob, ...] = ()
    confidence: float | None = None


@dataclass(frozen=True)
class PooledOutput:
    """float32 [D]: the mean over the prompt's tokens of the last block's output, after the norm."""

    hidden: Tensor


@dataclass(frozen=True)
class Finished:
    """The last output of every sequence. text: what the detokenizer still held back. message: why, for an error; code:
    its kind, as OpenAI names it. num_drafted_tokens: of speculative decoding, and how many of them were accepted."""

    reason: FinishReason
    text: str = ""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    message: str = ""
    code: str | None = None
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0


Output = PrefillFinished | PromptLogprob | TokenOutput | PooledOutput | Finished
OutputCallback = Callable[[Output], bool]
"""Receives the outputs of one sequence, on the engine's thread. Returns whether the sequence stops with this token."""


def whole_text(outputs: Iterable[Output], model: str) -> str:
    """The text of a sequence, read to its end. WorkError with the reason if it was not generated to its end."""
    pieces: list[str] = []
    for output in outputs:
        if isinstance(output, TokenOutput | Finished):
            pieces.append(output.text)
        if isinstance(output, Finished) and output.reason not in ("stop", "length"):
            raise WorkError(f"{model} gave no answer: {output.message or output.reason}")
    return "".join(pieces)
