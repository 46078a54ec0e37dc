"""Which prompts are read together in one pass, and how far."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.inference.scheduler_config import SchedulerConfig
from synthe_core.inference.sequence import Sequence

SIMILAR = 0.75
"""Without fixed lengths: how long the shortest chunk of a pass is at least, as a share of the longest."""


@dataclass
class PrefillBatch:
    """Groups of sequences to read together: the next `num_tokens` of each, padded to `padded_length`. The sequences of
    a group read the same tokens from the same state: they are one row."""

    groups: list[list[Sequence]] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    padded_length: int = 0

    @property
    def rows(self) -> list[Sequence]:
        """The first sequence of each group."""
        return [group[0] for group in self.groups]

    def token_ids(self) -> Tensor:
        """int64 [B, padded_length]."""
        tokens = torch.zeros(len(self.groups), self.padded_length, dtype=torch.int64)
        for row, (sequence, count) in enumerate(zip(self.rows, self.num_tokens, strict=True)):
            first = sequence.num_computed_tokens
            tokens[row, :count] = torch.tensor(sequence.token_ids[first : first + count])
        return tokens


def chunk_length(sequence: Sequence, config: SchedulerConfig) -> int:
    """How many tokens the sequence reads in its next pass: up to the next multiple of the chunk size, the next cache
    breakpoint, the last aligned position, or the end."""
    first = sequence.num_computed_tokens
    left = sequence.num_prefill_tokens - first
    total = sequence.num_past_tokens + sequence.num_prefill_tokens
    aligned = left - total % config.alignment
    count = min(
        aligned if aligned > 0 else left, config.chunk_size - (sequence.num_past_tokens + first) % config.chunk_size
    )
    return min(count, *(b - first for b in sequence.request.cache_breakpoints if b > first), left)


def grouped(sequences: Iterable[Sequence], config: SchedulerConfig) -> list[list[Sequence]]:
    """The sequences in their order, with those together that read the same tokens from the same state."""
    groups: dict[Hashable, list[Sequence]] = {}
    for sequence in sequences:
        groups.setdefault(_next_chunk(sequence, config), []).append(sequence)
    return list(groups.values())


def _next_chunk(sequence: Sequence, config: SchedulerConfig) -> Hashable:
    """What the sequence's next pass computes. Sequences share a state only if they share what it has read."""
    first, request = sequence.num_computed_tokens, sequence.request
    if sequence.next_chunk is None or sequence.next_chunk[0] != first:
        tokens = array("q", sequence.token_ids[first : first + chunk_length(sequence, config)]).tobytes()
        reports = request.pooling, request.prompt_logprobs, request.logprobs if request.prompt_logprobs else None
        sequence.next_chunk = first, (sequence.fingerprint, first, tokens, reports)
    return None if sequence.state is None else id(sequence.state), sequence.next_chunk[1]


def furthest(sequence: Sequence, others: Iterable[Sequence], config: SchedulerConfig) -> Sequence | None:
    """The one of `others` that has read most of the sequence's own prompt, and nothing else; None if none has read
    more than the sequence itself."""
    best, seen = None, set()
    most = sequence.num_computed_tokens
    for other in others:
        count = other.num_computed_tokens
        if not most < count < sequence.num_prefill_tokens or id(other.state) in seen:
            continue
        seen.add(id(other.state))
        may_be_cut = not config.batch_invariant or count % config.alignment == 0
        is_same = other.is_cacheable and other.fingerprint == sequence.fingerprint
        if may_be_cut and is_same and other.token_ids[:count] == sequence.token_ids[:count]:
            best, most = other, count
    return best


def next_prefill_batch(groups: Iterable[Many[Sequence]], config: SchedulerConfig, has_router: bool) -> PrefillBatch:
    """The first group, and others whose next chunk fits into the same pass.

    With a router a pass computes as many tokens as the longest row needs, so that in batch-invariant mode every
    sequence is read alone.
    """
    batch = PrefillBatch()
    for group in groups:
        count = chunk_length(group[0], config)
        padded = next((size for size in config.padded_lengths if size >= count), count)
        if not batch.groups:
            batch.padded_length = padded
        elif not _fits(batch, group[0], padded, config, has_router):
            continue
        batch.groups.append(list(group))
        batch.num_tokens.append(count)
    return batch


def _fits(batch: PrefillBatch, sequence: Sequence, padded: int, config: SchedulerConfig, has_router: bool) -> bool:
    if (len(batch.groups) + 1) * batch.padded_length > config.max_prefill_tokens:
        return False
    if not config.batch_invariant:
        return SIMILAR * batch.padded_length - 4 <= padded <= batch.padded_length
    # Windows must be equally full: padding them would change the order of their sums.
    same_window = _state_bytes(sequence) == _state_bytes(batch.rows[0])
    return not has_router and padded == batch.padded_length and same_window


def _state_bytes(sequence: Sequence) -> int:
    return 0 if sequence.state is None else states.nbytes(sequence.state)


def caches_state(sequence: Sequence, config: SchedulerConfig) -> bool:
    """Whether the state where the sequence's prefill stands is cached: at cache breakpoints; in batch-invariant mode
    also at the chunk size times powers of two and at the last two possible positions, since a conversation may fork
    there and a prompt may share its beginning with another."""
    position = sequence.num_computed_tokens
    if position in sequence.request.cache_breakpoints:
        return True
    if not config.batch_invariant:
        return False
    chunks, left = position // config.chunk_size, sequence.num_prefill_tokens - position
    is_power_of_two = chunks & (chunks - 1) == 0
    return left < config.alignment or (
        position % config.chunk_size == 0 and (is_power_of_two or left < config.chunk_size)
    )
