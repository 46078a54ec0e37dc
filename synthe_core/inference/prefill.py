"""Which prompts are read together in one pass, and how far."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.inference.prefix_cache import prefix_hashes
from synthe_core.inference.scheduler_config import SchedulerConfig
from synthe_core.inference.sequence import Sequence

SIMILAR = 0.75
"""Without fixed lengths: how long the shortest chunk of a pass is at least, as a share of the longest."""

PrefixKey = tuple[int, int, str]
"""Length and hash of a prefix of a prompt, and the fingerprint of what reads it."""


@dataclass
class PrefillBatch:
    """Sequences to read together: the next `num_tokens` of each, padded to `padded_length`."""

    sequences: list[Sequence] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    padded_length: int = 0

    def token_ids(self) -> Tensor:
        """int64 [B, padded_length]."""
        tokens = torch.zeros(len(self.sequences), self.padded_length, dtype=torch.int64)
        for row, (sequence, count) in enumerate(zip(self.sequences, self.num_tokens, strict=True)):
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


def next_prefill_batch(waiting: Iterable[Sequence], config: SchedulerConfig, has_router: bool) -> PrefillBatch:
    """The longest waiting sequence, and others whose next chunk fits into the same pass.

    With a router a pass computes as many tokens as the longest row needs, so that in batch-invariant mode every
    sequence is read alone.
    """
    batch = PrefillBatch()
    for sequence in waiting:
        count = chunk_length(sequence, config)
        padded = next((size for size in config.padded_lengths if size >= count), count)
        if not batch.sequences:
            batch.padded_length = padded
        elif not _fits(batch, sequence, padded, config, has_router):
            continue
        batch.sequences.append(sequence)
        batch.num_tokens.append(count)
    return batch


def _fits(batch: PrefillBatch, sequence: Sequence, padded: int, config: SchedulerConfig, has_router: bool) -> bool:
    if (len(batch.sequences) + 1) * batch.padded_length > config.max_prefill_tokens:
        return False
    if not config.batch_invariant:
        return SIMILAR * batch.padded_length - 4 <= padded <= batch.padded_length
    # Windows must be equally full: padding them would change the order of their sums.
    same_window = _state_bytes(sequence) == _state_bytes(batch.sequences[0])
    return not has_router and padded == batch.padded_length and same_window


def _state_bytes(sequence: Sequence) -> int:
    return 0 if sequence.state is None else states.nbytes(sequence.state)


def prefix_keys(sequence: Sequence, config: SchedulerConfig) -> list[PrefixKey]:
    """The prefixes that other sequences may share with this one: to each cache breakpoint, and in batch-invariant mode
    its whole prompt."""
    length = len(sequence.token_ids)
    lengths = {each for each in sequence.request.cache_breakpoints if each <= length}
    if config.batch_invariant:
        lengths.add(length)
    if not lengths:
        return []
    hashes = prefix_hashes(sequence.token_ids)
    return [(each, int(hashes[each]), sequence.fingerprint) for each in sorted(lengths)]


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


def unclaimed(sequences: Many[Sequence]) -> tuple[list[Sequence], list[Sequence]]:
    """The sequences that may be read now, and those that wait for another that is about to read the same prefix."""
    claims: set[PrefixKey] = set()
    ready, deferred = [], []
    for sequence in sequences:
        if _has_started(sequence):
            claims.update(next_keys(sequence))
    for sequence in sequences:
        keys = next_keys(sequence)
        if not _has_started(sequence) and keys and keys[0] in claims:
            deferred.append(sequence)
        else:
            claims.update(keys)
            ready.append(sequence)
    return ready, deferred


def _has_started(sequence: Sequence) -> bool:
    return sequence.num_computed_tokens > sequence.num_cached_tokens


def next_keys(sequence: Sequence) -> list[PrefixKey]:
    """The sequence's prefix keys that it has not reached yet."""
    return [key for key in sequence.prefix_keys if key[0] > sequence.num_computed_tokens]
