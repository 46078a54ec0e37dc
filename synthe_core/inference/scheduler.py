"""The scheduler of one model: prompts are read in chunks, and all sequences that are read generate together."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.inference.loaded_model import ForwardOutput, LoadedModel
from synthe_core.inference.metrics import Metrics
from synthe_core.inference.outputs import FinishReason, PrefillFinished, TokenOutput
from synthe_core.inference.prefill import (
    PrefillBatch,
    caches_state,
    next_keys,
    next_prefill_batch,
    prefix_keys,
    unclaimed,
)
from synthe_core.inference.prefix_cache import CachedState, PrefixCache
from synthe_core.inference.prompt_logprobs import add_prompt_logprobs
from synthe_core.inference.sampler import sample, token_logprobs
from synthe_core.inference.scheduler_config import SchedulerConfig
from synthe_core.inference.sequence import Sequence, SequenceStatus
from synthe_core.inference.state_batch import StateBatch
from synthe_core.layers.adapter_batch import AdapterBatch, use_adapters

LOGITS = 1 << 24
"""Logits that are held at a time for the logprobs of a prompt."""


class Finish(Protocol):
    """Ends a sequence; see `Engine.finish`."""

    def __call__(self, sequence: Sequence, reason: FinishReason, error: Exception | None = None) -> None: ...


class Heads(NamedTuple):
    """What follows a token: float32 logits [N, V], and the model's confidence [N]; None where nobody asks for it."""

    logits: Tensor
    confidence: Tensor | None

    def rows(self, index: Tensor) -> Heads:
        confidence = None if self.confidence is None else self.confidence.index_select(0, index)
        return Heads(self.logits.index_select(0, index), confidence)


class ModelScheduler:
    """Runs the sequences of a model, each with its own adapter or without one, in common passes.

    A pass that raises is repeated for each of its sequences alone, and what concerns one sequence is computed apart:
    an error ends the sequence that causes it, and no other.
    """

    def __init__(
        self,
        model: LoadedModel,
        config: SchedulerConfig,
        prefix_cache: PrefixCache,
        metrics: Metrics,
        finish: Finish,
    ) -> None:
        self.model = model
        self.config, self.prefix_cache, self.metrics, self.finish = config, prefix_cache, metrics, finish
        self.prefilling: deque[Sequence] = deque()
        self.batch = StateBatch(self.model)

    @property
    def sequences(self) -> list[Sequence]:
        return [*self.prefilling, *self.batch.sequences]

    def step(self) -> None:
        """Reads a chunk of prompts, and generates one token of every sequence that has read its prompt."""
        with self.model.activate():
            self.prefill()
            while self.prefilling and self.config.prefill_first:
                self.prefill()
            self.decode()
            self.batch.compact()

    def add(self, sequence: Sequence) -> None:
        """Takes in an admitted sequence."""
        sequence.status = SequenceStatus.PREFILLING
        sequence.num_cached_tokens = sequence.num_past_tokens
        if sequence.is_cacheable and not sequence.request.prompt_logprobs and self.prefix_cache.limit:
            sequence.prefix_keys = prefix_keys(sequence, self.config)
        self.prefilling.append(sequence)
        with self.model.activate():
            self._continue_from_cache(sequence)

    def remove(self, sequence: Sequence, keep_state: bool) -> None:
        """Takes a sequence out. Its state is then in `sequence.state`: None if its prompt is not read to the end."""
        if sequence.status is SequenceStatus.RUNNING:
            if keep_state and sequence.state is None:
                sequence.state = self.batch.state_of(sequence)
            self.batch.remove(sequence)
        elif sequence in self.prefilling:
            self.prefilling.remove(sequence)
            sequence.state = None

    # Prefill

    def prefill(self) -> None:
        """One pass over chunks of prompts, those that wait longest first."""
        ready, deferred = unclaimed(self.prefilling)
        batch = next_prefill_batch(ready, self.config, self.model.has_router)
        if not batch.sequences:
            return
        claimed = {key for sequence in batch.sequences for key in next_keys(sequence)}
        self._prefill(batch)
        if deferred:
            unfinished = [sequence for sequence in batch.sequences if sequence in self.prefilling]
            computed = claimed.difference(*map(next_keys, unfinished))
            for sequence in deferred:
                if next_keys(sequence)[0] in computed and not sequence.finished:
                    self._continue_from_cache(sequence)

    def _prefill(self, batch: PrefillBatch) -> None:
        try:
            output, heads = self._prefill_pass(batch)
        except Exception as error:
            if len(batch.sequences) == 1:
                self.finish(batch.sequences[0], "error", error)
            else:
                for sequence, count in zip(batch.sequences, batch.num_tokens, strict=True):
                    self._prefill(PrefillBatch([sequence], [count], batch.padded_length))
            return
        self.metrics.prompt_tokens += sum(batch.num_tokens)
        self.metrics.computed_tokens += len(batch.sequences) * batch.padded_length
        complete = []
        for row, (sequence, count) in enumerate(zip(batch.sequences, batch.num_tokens, strict=True)):
            try:
                self._advance(sequence, row, count, output)
                if sequence.num_computed_tokens == sequence.num_prefill_tokens:
                    self._complete(sequence, heads.rows(torch.tensor([row], device=self.model.device)))
                    complete.append(row)
            except Exception as error:
                self.finish(sequence, "error", error)
        going = [row for row in complete if not batch.sequences[row].finished]
        if going:
            index = torch.tensor(going, device=self.model.device)
            self._append_tokens([batch.sequences[row] for row in going], heads.rows(index))

    def _prefill_pass(self, batch: PrefillBatch) -> tuple[ForwardOutput, Heads]:
        """The pass, and what follows each row's last token."""
        device = self.model.device
        fresh = [self.model.model.init_state(1) if s.state is None else s.state for s in batch.sequences]
        state = states.join(fresh) if len(fresh) > 1 else fresh[0]
        lengths = torch.tensor(batch.num_tokens, device=device)
        is_padded = self.config.batch_invariant or min(batch.num_tokens) < batch.padded_length
        rows, last = torch.arange(len(fresh), device=device), lengths - 1
        with use_adapters(self._adapters(batch.sequences)):
            output = self.model.forward(batch.token_ids().to(device), state, lengths if is_padded else None)
            signals = {name: value[rows, last] for name, value in output.signals.items()}
            return output, self._heads(output.hidden[rows, last], signals, confidence=True)

    def _advance(self, sequence: Sequence, row: int, count: int, output: ForwardOutput) -> None:
        """Records what a pass has done for one of its rows."""
        first = sequence.num_computed_tokens
        if sequence.request.prompt_logprobs:
            self._report_prompt(sequence, output.hidden[row, :count], first)
        sequence.num_computed_tokens += count
        sequence.state = states.take(output.state, torch.tensor([row], device=self.model.device))
        if not self.config.batch_invariant:
            position = sequence.num_past_tokens + sequence.num_computed_tokens
            sequence.state = self.batch.trimmed(sequence.state, position)
        self.prefilling.remove(sequence)
        if sequence.num_computed_tokens < sequence.num_prefill_tokens:
            self.prefilling.append(sequence)
            if caches_state(sequence, self.config):
                resumable = not self.config.batch_invariant
                self._cache(sequence, sequence.token_ids[: sequence.num_computed_tokens], resumable=resumable)

    def _complete(self, sequence: Sequence, heads: Heads) -> None:
        """The prompt is read: caches its end if it may be shared, and ends a sequence that generates nothing."""
        length = len(sequence.token_ids)
        is_shared = self.config.batch_invariant or length in sequence.request.cache_breakpoints
        if is_shared and sequence.num_prefill_tokens == length:
            resumable = not self.config.batch_invariant
            self._cache(sequence, sequence.token_ids, heads, resumable=resumable)
        if not sequence.request.max_tokens:
            self._finish_without_output(sequence)

    def _continue_from_cache(self, sequence: Sequence) -> None:
        """Goes on from the longest cached prefix of the sequence's prompt."""
        try:
            heads = self._load_prefix(sequence)
            if sequence.num_computed_tokens < sequence.num_prefill_tokens:
                return
            self.prefilling.remove(sequence)
            if heads is None:
                self._finish_without_output(sequence)
        except Exception as error:
            self.finish(sequence, "error", error)
            return
        if heads is not None:
            self._append_tokens([sequence], heads)

    def _load_prefix(self, sequence: Sequence) -> Heads | None:
        """What follows the prompt, where all of it is cached and something is to be generated."""
        if not sequence.prefix_keys:
            return None
        cached = self.prefix_cache.longest(sequence.fingerprint, sequence.token_ids[: sequence.num_prefill_tokens])
        if cached is None or cached.length <= sequence.num_computed_tokens:
            return None
        sequence.state = cached.state
        sequence.num_computed_tokens = sequence.num_cached_tokens = cached.length
        complete = cached.length == sequence.num_prefill_tokens and sequence.request.max_tokens
        return Heads(cached.logits, cached.confidence) if complete and cached.logits is not None else None

    def _report_prompt(self, sequence: Sequence, hidden: Tensor, first: int) -> None:
        """Logprobs of the prompt's tokens from `first` on, given the head's input after each of them."""
        if sequence.request.logprobs is None:
            add_prompt_logprobs(sequence, None, first, first + len(hidden))
            return
        size = max(1, LOGITS // self.model.vocab)
        for start in range(0, len(hidden), size):
            with use_adapters(self._adapters([sequence])):
                logits = self.model.logits(hidden[start : start + size])
            add_prompt_logprobs(sequence, logits, first + start, first + start + len(logits))

    def _report_prefill(self, sequence: Sequence) -> None:
        sequence.emit(PrefillFinished(sequence.num_prompt_tokens, sequence.num_cached_tokens))
        for prompt_logprob in sequence.prompt_logprobs:
            sequence.emit(prompt_logprob)
        sequence.prompt_logprobs = []

    def _finish_without_output(self, sequence: Sequence) -> None:
        last, end = sequence.last_prompt_logits, sequence.num_prefill_tokens
        if sequence.request.prompt_logprobs and end < len(sequence.token_ids):
            add_prompt_logprobs(sequence, None if last is None else last[None], end, len(sequence.token_ids))
        if sequence.state is None:  # nothing is read but what comes next
            sequence.state = self.model.model.init_state(1)
        self._report_prefill(sequence)
        self.finish(sequence, "length")

    # Decode

    def decode(self) -> None:
        """One more token of every running sequence."""
        sequences = self.batch.sequences
        if not sequences:
            return
        confidence = any(sequence.request.return_logprob for sequence in sequences)
        try:
            with use_adapters(self.batch.adapters):
                output = self.model.forward(self.batch.last_token_ids, self.batch.state)
                heads = self._heads(output.hidden[:, 0], {k: v[:, 0] for k, v in output.signals.items()}, confidence)
        except Exception as error:
            self._decode_alone(sequences, error)
            return
        self.metrics.computed_tokens += len(self.batch.slots)
        self.batch.state = output.state
        occupied = self.batch.occupied()
        self._append_tokens(sequences, heads if occupied is None else heads.rows(occupied))

    def _decode_alone(self, sequences: Many[Sequence], error: Exception) -> None:
        """One more token of each sequence by itself, after a pass over all of them has failed with `error`."""
        if len(sequences) == 1:
            self.finish(sequences[0], "error", error)
            return
        for sequence in sequences:
            try:
                tokens = torch.tensor([[sequence.last_token_id]], device=self.model.device)
                with use_adapters(self._adapters([sequence])):
                    output = self.model.forward(tokens, self.batch.state_of(sequence))
                    signals = {name: value[:, 0] for name, value in output.signals.items()}
                    heads = self._heads(output.hidden[:, 0], signals, sequence.request.return_logprob)
                self.batch.replace_state(sequence, output.state)
            except Exception as own:
                self.finish(sequence, "error", own)
            else:
                self._append_tokens([sequence], heads)

    def _adapters(self, sequences: Many[Sequence]) -> AdapterBatch:
        return self.model.adapter_batch(sequence.resolved.adapter for sequence in sequences)

    def _heads(self, hidden: Tensor, signals: Mapping[str, Tensor], confidence: bool) -> Heads:
        """From the head's input [N, D] and the signals [N]."""
        logits = self.model.logits(hidden)
        if not confidence:
            return Heads(logits, None)
        max_logprob = logits.amax(-1) - logits.logsumexp(-1)
        beside = {name: value[:, None] for name, value in signals.items()}
        return Heads(logits, self.model.confidence(hidden[:, None], beside, max_logprob[:, None])[:, 0])

    # Output

    def _append_tokens(self, sequences: Many[Sequence], heads: Heads) -> None:
        """Samples the next token of each sequence; those that go on have a slot in the batch afterwards."""
        tokens = sample(heads.logits, [sequence.sampling for sequence in sequences])
        outputs = self._token_outputs(sequences, tokens, heads)
        starting = []
        for sequence, output in zip(sequences, outputs, strict=True):
            try:
                if isinstance(output, Exception):
                    raise output
                if sequence.status is SequenceStatus.PREFILLING:
                    self._report_prefill(sequence)
                reason = self._append(sequence, output)
                if reason is not None:
                    self._finish(sequence, reason)
                elif sequence.status is SequenceStatus.PREFILLING:
                    starting.append(sequence)
            except Exception as error:
                self.finish(sequence, "error", error)
        if starting:
            self._start(starting)

    def _token_outputs(
        self, sequences: Many[Sequence], tokens: Many[int | Exception], heads: Heads
    ) -> list[TokenOutput | Exception]:
        """The output of each sequence, or the error that its token or logprobs led to."""
        self.metrics.add_output_tokens(len(tokens))
        if heads.confidence is None or not any(sequence.request.return_logprob for sequence in sequences):
            return [token if isinstance(token, Exception) else TokenOutput(token) for token in tokens]
        valid = [0 if isinstance(token, Exception) else token for token in tokens]
        logprobs = token_logprobs(heads.logits, valid, [sequence.request.logprobs or 0 for sequence in sequences])
        confidences = heads.confidence.tolist()
        outputs: list[TokenOutput | Exception] = []
        for token, logprob, confidence in zip(tokens, logprobs, confidences, strict=True):
            if isinstance(token, Exception):
                outputs.append(token)
            elif isinstance(logprob, Exception):
                outputs.append(logprob)
            else:
                outputs.append(TokenOutput(token, "", *logprob, confidence))
        return outputs

    def _append(self, sequence: Sequence, output: TokenOutput) -> FinishReason | None:
        """Adds a token to the sequence and passes it on; why the sequence ends with it, None if it goes on."""
        token, constraint = output.token_id, sequence.constraint
        is_end = token in self.model.end_token_ids and not sequence.request.ignore_eos
        if constraint is not None and not is_end:
            constraint.accept(token)
        sequence.sampling.accept(token)
        sequence.output_token_ids.append(token)
        if sequence.emit(output) or is_end or (constraint is not None and constraint.done):
            return "stop"
        return "length" if len(sequence.output_token_ids) >= sequence.request.max_tokens else None

    def _start(self, sequences: Many[Sequence]) -> None:
        """Gives sequences that have their first token a slot in the batch."""
        try:
            self.batch.add(sequences)
        except Exception as error:
            if len(sequences) == 1:
                self.finish(sequences[0], "error", error)
            else:
                for sequence in sequences:
                    self._start([sequence])
            return
        for sequence in sequences:
            sequence.status = SequenceStatus.RUNNING

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence that is complete; the conversation may go on from its end."""
        is_cached = sequence.is_cacheable and self.prefix_cache.limit and self.config.cache_outputs
        if sequence.status is SequenceStatus.RUNNING and is_cached:
            sequence.state = self.batch.state_of(sequence)
            self._cache(sequence, [*sequence.token_ids, *sequence.output_token_ids[:-1]], resumable=True)
        self.finish(sequence, reason)

    def _cache(
        self, sequence: Sequence, tokens: Many[int], heads: Heads | None = None, resumable: bool = False
    ) -> None:
        if sequence.is_cacheable and self.prefix_cache.limit:
            logits, confidence = heads or (None, None)
            state = CachedState(sequence.fingerprint, list(tokens), sequence.state, logits, confidence, resumable)
            self.prefix_cache.put(state)
