"""How a scheduler cuts prompts into passes."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

ALIGNMENT = 16
"""Passes over parts of a text whose lengths are multiples of this give the bits of one pass, for most learners."""

LONGEST_CHUNK = 2048


@dataclass(frozen=True)
class SchedulerConfig:
    """chunk_size:         prompts are cut at multiples of this, counted from the beginning of the text.
    alignment:          the last pass over a prompt begins at a multiple of this, or of a model's own (see
                        `LoadedModel.alignment`).
    padded_lengths:     chunks are padded to the next of these, and read with others of the same; empty: to the longest.
    max_prefill_tokens: prompt tokens of one pass, padding included: how long a long prompt delays the others.
    cache_outputs:      the state at the end of each output is cached, for the next turn of the conversation.
    prefill_first:      all prompts are read before the next token is generated.
    batch_invariant:    a sequence's numbers do not depend on what else runs: cuts and padding follow from its own text.
    """

    chunk_size: int = 256
    alignment: int = ALIGNMENT
    padded_lengths: Many[int] = (16, 32, 48, 64, 96, 128, 192, 256)
    max_prefill_tokens: int = 512
    cache_outputs: bool = True
    prefill_first: bool = False
    batch_invariant: bool = True

    def within(self, tokens: int) -> SchedulerConfig:
        """For a model whose weights are read in each pass, which has room for so many tokens: as few passes as there
        can be, none with more."""
        aligned = max(self.alignment, tokens // self.alignment * self.alignment)
        return replace(self, chunk_size=min(aligned, LONGEST_CHUNK), max_prefill_tokens=tokens)

    def aligned(self, alignment: int) -> SchedulerConfig:
        """With a model's own alignment, where a sequence's numbers must not depend on where it is cut."""
        return replace(self, alignment=max(self.alignment, alignment)) if self.batch_invariant else self


def offline(device: str) -> SchedulerConfig:
    """For texts that nobody waits for one by one: large passes, with as little padding as possible."""
    return SchedulerConfig(
        chunk_size=2048,
        alignment=1,
        padded_lengths=(),
        max_prefill_tokens=4096 if device == "cpu" else 65_536,
        cache_outputs=False,
        prefill_first=True,
        batch_invariant=False,
    )
