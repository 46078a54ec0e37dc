"""The scheduler of one model: prompts are read in chunks, and all sequences that are read generate together."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence as Many
from typing import Protocol

import torch

from synthe_core import state as states
from synthe_core.inference.decode_pass import pass_over, pass_over_all
from synthe_core.inference.decode_turns import DecodeTurns
from synthe_core.inference.fairness import TokenCounters
from synthe_core.inference.heads import Heads, next_token_heads, token_outputs
from synthe_core.inference.loaded_model import ForwardOutput, LoadedModel
from synthe_core.inference.metrics import EngineMetrics
from synthe_core.inference.mixed_heads import mixed, share_tokens
from synthe_core.inference.outputs import FinishReason, PooledOutput, PrefillFinished, TokenOutput
from synthe_core.inference.prefill import PrefillBatch, caches_state, furthest, grouped, next_prefill_batch
from synthe_core.inference.prefix_cache import CachedState, PrefixCache
from synthe_core.inference.prompt_logprobs import add_prompt_logprobs, report_prompt
from synthe_core.inference.sampler import sample
from synthe_core.inference.scheduler_config import SchedulerConfig
from synthe_core.inference.sequence import Sequence, SequenceStatus
from synthe_core.inference.speculation.batch import SpeculativeBatch
from synthe_core.inference.speculation.decoder import SpeculativeDecoder
from synthe_core.inference.state_batch import StateBatch
from synthe_core.inference.thread_choice import limited_to
from synthe_core.layers.adapter_batch import AdapterBatch, use_adapters


class Finish(Protocol):
    """Ends a sequence; see `Engine.finish`."""

    def __call__(self, sequence: Sequence, reason: FinishReason, error: Exception | None = None) -> None: ...


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
        metrics: EngineMetrics,
        counters: TokenCounters,
        finish: Finish,
    ) -> None:
        self.model, self.counters = model, counters
        self.config = config.aligned(model.alignment(config.chunk_size))
        self.prefix_cache, self.metrics, self.finish = prefix_cache, metrics, finish
        self.prefilling: deque[Sequence] = deque()
        self.gathering: list[Sequence] = []  # prompts are read, those of others in their mixtures are not
        self.speculative: SpeculativeDecoder | None = None
        if model.speculation is None:
            self.batch = StateBatch(model)
        else:
            self.batch = batch = SpeculativeBatch(model)
            self.speculative = SpeculativeDecoder(
                model, model.speculation, batch, metrics, self._append_tokens, self.finish
            )
        self.turns = DecodeTurns()

    @property
    def sequences(self) -> list[Sequence]:
        return [*self.prefilling, *self.gathering, *self.batch.sequences]

    def step(self) -> None:
        """Reads a chunk of prompts, and generates one token of every sequence that has read its prompt and has its
        turn."""
        with self.model.activate():
            self.prefill()
            while self.prefilling and self.config.prefill_first:
                self.prefill()
            if running := self.batch.sequences:
                with limited_to(self.model.decode_threads(len(running))):
                    self.decode()
            self.batch.compact()

    def add(self, sequence: Sequence) -> None:
        """Takes in an admitted sequence."""
        sequence.status = SequenceStatus.PREFILLING
        sequence.num_cached_tokens = sequence.num_past_tokens
        self.prefilling.append(sequence)
        with self.model.activate():
            self._continue_from_others(sequence)

    def remove(self, sequence: Sequence, keep_state: bool) -> None:
        """Takes a sequence out. Its state is then in `sequence.state`: None if its prompt is not read to the end."""
        if sequence.status is SequenceStatus.RUNNING:
            if keep_state and sequence.state is None:
                sequence.state = self.batch.state_of(sequence)
            self.batch.remove(sequence)
        elif sequence in self.prefilling or sequence in self.gathering:
            (self.prefilling if sequence in self.prefilling else self.gathering).remove(sequence)
            sequence.state = None
        elif sequence.status is SequenceStatus.PAUSED and not sequence.output_token_ids:
            sequence.state = None

    def pause(self, sequence: Sequence) -> None:
        """Takes a sequence out until `resume`, with what it has computed."""
        if sequence.status is SequenceStatus.RUNNING:
            sequence.state = self.batch.state_of(sequence)
            self.batch.remove(sequence)
        else:
            self.prefilling.remove(sequence)
        sequence.status = SequenceStatus.PAUSED

    def resume(self, sequence: Sequence) -> None:
        """Goes on with a paused sequence."""
        sequence.status = SequenceStatus.PREFILLING
        if not sequence.output_token_ids:
            self.prefilling.append(sequence)
            return
        with self.model.activate():
            self._start([sequence])

    # Prefill

    def prefill(self) -> None:
        """One pass over chunks of prompts: those of the clients that got least, and among these those that wait
        longest, first. What several prompts have in common is computed once."""
        order = sorted(self.prefilling, key=lambda sequence: self.counters[sequence.request.client])
        batch = next_prefill_batch(grouped(order, self.config), self.config, self.model.has_router)
        if batch.groups:
            self._prefill(batch)

    def _prefill(self, batch: PrefillBatch) -> None:
        try:
            output, heads = self._prefill_pass(batch)
        except Exception as error:
            if len(batch.groups) == 1:
                for sequence in batch.groups[0]:
                    self.finish(sequence, "error", error)
            else:
                for group, count in zip(batch.groups, batch.num_tokens, strict=True):
                    self._prefill(PrefillBatch([group], [count], batch.padded_length))
            return
        self.metrics.computed_tokens += len(batch.groups) * batch.padded_length
        complete: list[tuple[int, Sequence]] = []
        for row, (group, count) in enumerate(zip(batch.groups, batch.num_tokens, strict=True)):
            self.counters.charge(group[0].request.client, prompt_tokens=count)
            self.metrics.add(group[0].request.owner, prompt_tokens=count)
            complete += [(row, sequence) for sequence in self._advance(group, row, count, output)]
        self._complete(complete, heads)

    def _prefill_pass(self, batch: PrefillBatch) -> tuple[ForwardOutput, Heads]:
        """The pass, and what follows each row's last token."""
        device = self.model.device
        fresh = [self.model.model.init_state(1) if s.state is None else s.state for s in batch.rows]
        state = states.join(fresh) if len(fresh) > 1 else fresh[0]
        lengths = torch.tensor(batch.num_tokens, device=device)
        is_padded = self.config.batch_invariant or min(batch.num_tokens) < batch.padded_length
        rows, last = torch.arange(len(fresh), device=device), lengths - 1
        with use_adapters(self._adapters(batch.rows)):
            output = self.model.forward(batch.token_ids().to(device), state, lengths if is_padded else None)
            signals = {name: value[rows, last] for name, value in output.signals.items()}
            return output, next_token_heads(self.model, output.hidden[rows, last], signals)

    def _advance(self, group: Many[Sequence], row: int, count: int, output: ForwardOutput) -> list[Sequence]:
        """Records what a pass has done for one of its rows; returns the sequences whose prompt is read to the end."""
        reader = group[0]
        try:
            if reader.request.prompt_logprobs:
                with use_adapters(self._adapters([reader])):
                    report_prompt(self.model, group, output.hidden[row, :count])
            state = states.take(output.state, torch.tensor([row], device=self.model.device))
            if not self.config.batch_invariant:
                position = reader.num_past_tokens + reader.num_computed_tokens + count
                state = self.batch.trimmed(state, position)
            if reader.request.pooling:
                total = output.hidden[row, :count].float().sum(0)
                total = total if reader.hidden_sum is None else reader.hidden_sum + total
                for sequence in group:
                    sequence.hidden_sum = total
            for sequence in group:
                sequence.num_computed_tokens += count
                sequence.num_cached_tokens += 0 if sequence is reader else count
                sequence.state = state
            complete = [each for each in group if each.num_computed_tokens == each.num_prefill_tokens]
            unfinished = [each for each in group if each.num_computed_tokens < each.num_prefill_tokens]
            for sequence in unfinished:  # behind the others of its client
                self.prefilling.remove(sequence)
                self.prefilling.append(sequence)
            if caching := next((each for each in unfinished if caches_state(each, self.config)), None):
                self._cache(caching, caching.token_ids[: caching.num_computed_tokens])
        except Exception as error:
            for sequence in group:
                self.finish(sequence, "error", error)
            return []
        return complete

    def _complete(self, complete: Many[tuple[int, Sequence]], heads: Heads) -> None:
        """Prompts are read, in these rows of `heads`: caches the end of each row if it may be shared, ends sequences
        that generate nothing, and samples the first token of the others."""
        generating, cached = [], set()
        for row, sequence in complete:
            self.prefilling.remove(sequence)
            try:
                length = len(sequence.token_ids)
                is_shared = self.config.batch_invariant or length in sequence.request.cache_breakpoints
                if is_shared and sequence.num_prefill_tokens == length and row not in cached:
                    cached.add(row)
                    self._cache(sequence, sequence.token_ids, heads.rows([row]))
                if sequence.request.max_tokens:
                    generating.append((row, sequence))
                else:
                    self._finish_without_output(sequence)
            except Exception as error:
                self.finish(sequence, "error", error)
        if generating:
            self._append_tokens([each for _, each in generating], heads.rows([row for row, _ in generating]))

    def _continue_from_others(self, sequence: Sequence) -> None:
        """Goes on from what has been read of the sequence's prompt: by a sequence that is reading the same, or from the
        longest cached prefix."""
        if not sequence.is_cacheable or sequence.request.prompt_logprobs:
            return
        try:
            heads = self._load_prefix(sequence)
            if (other := furthest(sequence, self.prefilling, self.config)) is not None:
                sequence.state = other.state
                sequence.num_computed_tokens = sequence.num_cached_tokens = other.num_computed_tokens
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
        cached = self.prefix_cache.longest(sequence.fingerprint, sequence.token_ids[: sequence.num_prefill_tokens])
        if cached is None or cached.length <= sequence.num_computed_tokens:
            return None
        sequence.state = cached.state
        sequence.num_computed_tokens = sequence.num_cached_tokens = cached.length
        complete = cached.length == sequence.num_prefill_tokens and sequence.request.max_tokens
        return Heads(cached.logits, cached.confidence) if complete and cached.logits is not None else None

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
        if sequence.hidden_sum is not None:
            sequence.emit(PooledOutput((sequence.hidden_sum / sequence.num_computed_tokens).cpu()))
        self.finish(sequence, "length")

    # Decode

    def decode(self) -> None:
        """The next token of every running sequence, or several where drafts are accepted."""
        if self.speculative is None:
            self._decode_batch()
        else:
            self.speculative.decode(self._decode_batch)

    def _decode_batch(self) -> None:
        running = self.batch.sequences
        if not running:
            return
        sequences, begun = running if self.speculative else self.turns.next(running), time.monotonic()
        is_short = len(sequences) < len(running)
        try:
            heads = pass_over(self.model, self.batch, sequences) if is_short else pass_over_all(self.model, self.batch)
        except Exception as error:
            self._decode_alone(sequences, error)
            return
        self.metrics.computed_tokens += len(sequences) if is_short else len(self.batch.slots)
        self._append_tokens(sequences, heads)
        self.turns.record(time.monotonic() - begun, is_short)

    def _decode_alone(self, sequences: Many[Sequence], error: Exception) -> None:
        """One more token of each sequence by itself, after a pass over all of them has failed with `error`."""
        if len(sequences) == 1:
            self.finish(sequences[0], "error", error)
            return
        for sequence in sequences:
            try:
                heads = pass_over(self.model, self.batch, [sequence])
            except Exception as own:
                self.finish(sequence, "error", own)
            else:
                self._append_tokens([sequence], heads)

    def _adapters(self, sequences: Many[Sequence]) -> AdapterBatch:
        return self.model.adapter_batch(sequence.resolved.adapter for sequence in sequences)

    # Output

    def _append_tokens(self, sequences: Many[Sequence], heads: Heads) -> None:
        """Samples the next token of each sequence; those that go on have a slot in the batch afterwards."""
        if is_mixed := any(sequence.mixture is not None for sequence in sequences):
            sequences, heads, waiting = mixed(sequences, heads)
            self.gathering = [each for each in (*self.gathering, *waiting) if each not in sequences]
            if not sequences:
                return
        tokens = sample(heads.logits, [sequence.sampling for sequence in sequences])
        if is_mixed:
            share_tokens(sequences, tokens)
        self.metrics.add_output_tokens_of(sequence.request.owner for sequence in sequences)
        for client, count in Counter(sequence.request.client for sequence in sequences).items():
            self.counters.charge(client, output_tokens=count)
        outputs = token_outputs(sequences, tokens, heads)
        starting = []
        for sequence, output in zip(sequences, outputs, strict=True):
            if sequence.finished:  # with the first of its mixture
                continue
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
        if starting := [sequence for sequence in starting if not sequence.finished]:
            self._start(starting)

    def _append(self, sequence: Sequence, output: TokenOutput) -> FinishReason | None:
        """Adds a token to the sequence and passes it on; why the sequence ends with it, None if it goes on."""
        token, constraint = output.token_id, sequence.constraint
        is_end = token in sequence.request.stop_token_ids or (
            token in self.model.end_token_ids and not sequence.request.ignore_eos
        )
        if constraint is not None and not is_end:
            constraint.accept(token)
        sequence.sampling.accept(token)
        sequence.append(token)
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
            length, config = sequence.num_past_tokens + len(tokens), self.config
            resumable |= not config.batch_invariant or 0 in (length % config.alignment, length % config.chunk_size)
            state = CachedState(sequence.fingerprint, tokens, sequence.state, logits, confidence, resumable)
            self.prefix_cache.put(state)
