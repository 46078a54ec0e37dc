"""What every candidate of a comparison computes, and what a candidate is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

PROMPT_TOKENS, PREFILL_TOKENS = 32, 512
"""The length of each text's prompt when steps are timed, and of the prompt whose prefill is timed."""


def prompt_tokens(vocab: int, length: int, row: int = 0) -> list[int]:
    """Token ids that any vocabulary has; those of two rows differ in the last one."""
    ids = [100 + i * 37 % 2000 for i in range(length - 1)] + [200 + row]
    return [each % vocab for each in ids]


class Candidate(Protocol):
    """A program that decodes greedily, without ends of texts."""

    name: str

    @property
    def settings(self) -> Mapping[str, str]:
        """Version, weights and threads."""

    def prepare(self, rows: int) -> None:
        """Gets ready for so many texts at once. WorkError if it cannot."""

    def step(self, rows: int, tokens: int) -> float:
        """Seconds for one more token of each of `rows` texts: the mean over the time in which all of them decode, of
        `tokens` each."""

    def prefill(self) -> float:
        """Seconds for a prompt of PREFILL_TOKENS and the first token after it."""

    def close(self) -> None:
        """Gives back memory and processes. It may be called twice."""
