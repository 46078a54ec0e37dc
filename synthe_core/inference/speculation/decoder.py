"""Speculative decoding of a model's running sequences: drafts, one pass that verifies them, the tokens that follow.

A sequence draws every token as it would without drafts, from the same logits with the same generator, penalties and
grammar. A draft's token is accepted if it is the one that is drawn. So the text does not depend on the drafts: for a
draft that does not depend on the draw, that is rejection sampling (Leviathan et al. 2023) with a proposal of one point,
whose token is accepted with the probability that the model gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any, NamedTuple

from synthe_core.inference.heads import Heads, next_token_heads
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.metrics import EngineMetrics
from synthe_core.inference.sequence import Sequence
from synthe_core.inference.speculation.batch import SpeculativeBatch, unread_tokens
from synthe_core.inference.speculation.draft_length import Acceptance, draft_lengths
from synthe_core.inference.speculation.passes import run_pass
from synthe_core.inference.speculation.proposer import DraftRequest, Speculation
from synthe_core.inference.validation import one_line
from synthe_core.layers.adapter_batch import use_adapters

MOST_UNREAD = 16
"""Tokens that a state lags behind; with more of them a pass has no draft, and the state catches up."""
MOST_SEQUENCES = 32
DRAFT_STATES = 1 << 28
"""Bytes of recurrent states after every token that a pass writes."""

Append = Callable[[Many[Sequence], Heads], None]
Finish = Callable[[Sequence, Any, Exception], None]


class Continuation(NamedTuple):
    """Tokens that a sequence's state has not read, and drafted ones behind them. matched: how many tokens these follow
    from, see `Proposer.matched`."""

    sequence: Sequence
    unread: Many[int]
    drafted: Many[int]
    matched: int | None


class SpeculativeDecoder:
    """Decodes the sequences of `batch`; `append` draws and reports the next token of sequences from their heads.

    Several sequences are decoded in the batch, or with drafts, whichever brings more tokens a second. One alone always
    may have drafts; where they do not pay they get shorter, to none.
    """

    def __init__(
        self,
        model: LoadedModel,
        speculation: Speculation,
        batch: SpeculativeBatch,
        metrics: EngineMetrics,
        append: Append,
        finish: Finish,
    ) -> None:
        self.model, self.speculation, self.batch, self.metrics = model, speculation, batch, metrics
        self._append, self._finish = append, finish
        batch.on_remove = self._forget
        self._acceptance: dict[Sequence, Acceptance] = {}
        self._seconds_per_draft = 0.0

    def decode(self, decode_batch: Callable[[], None]) -> None:
        """At least one more token of every sequence. decode_batch: one of each, in the batch."""
        clock, sequences = self.speculation.clock, self.batch.sequences
        if not sequences:
            return
        failure = ""
        if self._is_worthwhile(sequences):
            self.batch.separate()
            try:
                self._decode_drafts(list(self.batch.apart))
                return
            except Exception as fault:  # whichever sequence it is of: the batch finds out
                failure = one_line(fault)
                self.speculation.comparison.turn_off()
        for sequence, error in self.batch.rejoin():
            self._finish(sequence, "error", error)
        start = clock()
        decode_batch()
        self.speculation.batch_costs.record(len(sequences), clock() - start)
        if failure and all(each.error is None for each in sequences):  # it was of no sequence
            self.speculation.failure = failure

    def _decode_drafts(self, sequences: Many[Sequence]) -> None:
        clock = self.speculation.clock
        start = clock()
        drafts = self._draft(sequences)
        drafted_at = clock()
        longest = max(len(each.drafted) for each in drafts)
        if longest and not self.speculation.proposer.is_free:
            self._seconds_per_draft = (drafted_at - start) / longest
        tokens = [[*each.unread, *each.drafted] for each in drafts]
        adapters = [each.sequence.resolved.adapter for each in drafts]
        befores = [self.batch.apart[each.sequence].state for each in drafts]
        made = run_pass(self.model, tokens, befores, adapters)
        heads = self._heads(drafts, made.hidden, made.signals)
        for index, each in enumerate(drafts):
            self.batch.apart[each.sequence].verified = made, index
        num_tokens = sum(map(len, tokens))
        self.metrics.computed_tokens += num_tokens
        for each in drafts:
            each.sequence.begin_draft(each.drafted)
        before = sum(len(each.sequence.output_token_ids) for each in drafts)
        self._accept(drafts, heads)
        for each in drafts:
            self._record(each)
        end = clock()
        self.speculation.costs.record(num_tokens, end - drafted_at)
        if len(drafts) > 1:
            made_tokens = sum(len(each.sequence.output_token_ids) for each in drafts) - before
            self.speculation.comparison.record(made_tokens, end - start)

    def _draft(self, sequences: Many[Sequence]) -> list[Continuation]:
        """What each sequence has not read, with a draft as long as pays."""
        speculation, room = self.speculation, self._room(len(sequences))
        unread = [unread_tokens(each, self.batch.apart[each]) for each in sequences]
        most = [
            0
            if len(own) > MOST_UNREAD
            else min(speculation.most_tokens, room, each.request.max_tokens - len(each.output_token_ids) - 1)
            for each, own in zip(sequences, unread, strict=True)
        ]
        matched: list[int | None] = [None] * len(sequences)
        drafted: list[Many[int]] = [[] for _ in sequences]
        try:
            for row, each in enumerate(sequences):
                if most[row] and (length := speculation.proposer.matched(self._request(each, most[row]))) is not None:
                    matched[row], most[row] = length, most[row] if length else 0
            lengths = self._lengths(sequences, most, matched)
            wanted = [row for row, length in enumerate(lengths) if length]
            requests = [self._request(sequences[row], lengths[row]) for row in wanted]
            for row, draft in zip(wanted, speculation.proposer.propose(requests) if requests else [], strict=False):
                drafted[row] = draft[: lengths[row]]
        except Exception as error:  # no sequence needs a draft
            speculation.failure = one_line(error)
        return [Continuation(*each) for each in zip(sequences, unread, drafted, matched, strict=True)]

    def _lengths(self, sequences: Many[Sequence], most: list[int], matched: Many[int | None]) -> list[int]:
        """Of each sequence's draft. matched: the tokens that it follows from, see `Proposer.matched`."""
        known = [self._acceptance.setdefault(each, Acceptance()) for each in sequences]
        if self.speculation.always:
            return most
        rates = [each.rates(limit, length) for each, limit, length in zip(known, most, matched, strict=True)]
        lengths = draft_lengths(rates, most, self.speculation.costs, self._seconds_per_draft)
        for row, each in enumerate(known):
            if not lengths[row] and each.idle >= each.retry:
                lengths[row] = min(2, most[row])
        return lengths

    def _room(self, num_sequences: int) -> int:
        """Drafted tokens of each sequence, at most, whose states there is room for."""
        if not self.model.has_exact_passes or not (size := self.model.fused_decoder().row_state_bytes):
            return self.speculation.most_tokens
        return max(0, DRAFT_STATES // (size * num_sequences) - 1)

    def _request(self, sequence: Sequence, length: int) -> DraftRequest:
        own = self.batch.apart[sequence]
        return DraftRequest(
            sequence,
            sequence.token_ids,
            sequence.output_token_ids,
            own.state,
            own.num_read - sequence.num_past_tokens,
            sequence.resolved.adapter,
            length,
        )

    def _heads(self, drafts: Many[Continuation], hidden: Any, signals: Any) -> Heads:
        """What follows the last known token of each sequence and each drafted one."""
        rows, asking, first = list[int](), list[int](), 0
        for each in drafts:
            first += len(each.unread) - 1
            if each.sequence.request.return_logprob:
                asking += range(len(rows), len(rows) + len(each.drafted) + 1)
            rows += range(first, first + len(each.drafted) + 1)
            first += len(each.drafted) + 1
        if len(rows) < len(hidden):
            hidden, signals = hidden[rows], {name: value[rows] for name, value in signals.items()}
        own = (each.sequence.resolved.adapter for each in drafts for _ in range(len(each.drafted) + 1))
        with use_adapters(self.model.adapter_batch(own)):
            return next_token_heads(self.model, hidden, signals, asking)

    def _accept(self, drafts: Many[Continuation], heads: Heads) -> None:
        """Draws the next token of each sequence, and of those whose drafted token it is the one after that."""
        going, first = [], 0
        for each in drafts:
            going.append((each, first))
            first += len(each.drafted) + 1
        place = 0
        while going:
            rows = [first + place for _, first in going]
            self._append([each.sequence for each, _ in going], heads.rows(rows))
            going = [
                (each, first)
                for each, first in going
                if not each.sequence.finished
                and place < len(each.drafted)
                and each.sequence.output_token_ids[-1] == each.drafted[place]
            ]
            place += 1

    def _record(self, draft: Continuation) -> None:
        """Counts what became of a draft, and keeps the state after what was accepted of it."""
        sequence, drafted = draft.sequence, len(draft.drafted)
        accepted = sequence.end_draft()
        if sequence in self._acceptance:
            self._acceptance[sequence].record(drafted, accepted, draft.matched)
        self.speculation.drafted_tokens += drafted
        self.speculation.accepted_tokens += accepted
        self.metrics.add(sequence.request.owner, drafted_tokens=drafted, accepted_tokens=accepted)
        if sequence in self.batch.apart:
            self.batch.apart[sequence].settle(sequence.num_state_tokens)

    def _is_worthwhile(self, sequences: Many[Sequence]) -> bool:
        """Whether this step has drafts."""
        if self.speculation.failure or len(sequences) > MOST_SEQUENCES:
            return False
        if any(each.mixture is not None for each in sequences):  # their tokens are drawn together
            return False
        if self.speculation.always or len(sequences) == 1:
            return True
        return self.speculation.comparison.decide(len(sequences), self.speculation.batch_costs)

    def _forget(self, sequence: Sequence) -> None:
        self._acceptance.pop(sequence, None)
        self.speculation.proposer.forget(sequence)
