"""All requests of one model with one adapter: prompts are read in chunks, and what is read writes, all rows at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.adapters.lora import Adapter
from synthe_core.inference.batch import Batch
from synthe_core.inference.figures import Figures
from synthe_core.inference.live import Live
from synthe_core.inference.request import Event, Reason, Started
from synthe_core.inference.served import Passed, Prints, Served
from synthe_core.inference.snapshots import EXACT, Snapshot, Snapshots
from synthe_core.inference.writer import advance, prepare, tell

CHUNK = 256
"""Prompts are cut at multiples of this, counted from the text's beginning: never by what else is going on."""
SHAPES = (16, 32, 48, 64, 96, 128, 192, 256)
"""Chunks are padded to the next of these, and read together with others of the same."""
PLACE = EXACT
"""The last pass over a prompt begins at a multiple of this."""
LOGITS = 1 << 24  # held at a time, of prompts whose tokens are told


class Lane:
    """`emit` tells a row's caller; `finish` is called with a row at its end, why, and its state where there is one."""

    def __init__(
        self,
        served: Served,
        adapter: Adapter | None,
        prints: Prints,
        snapshots: Snapshots,
        figures: Figures,
        emit: Callable[[Live, Event], None],
        finish: Callable[[Live, Reason, object], None],
    ) -> None:
        self.served, self.adapter, self.prints = served, adapter, prints
        self.snapshots, self.figures, self.emit, self.finish = snapshots, figures, emit, finish
        self.device = served.model.embedding.weight.device
        self.reading: deque[Live] = deque()
        self.batch = Batch(served, self.device)

    @property
    def rows(self) -> list[Live]:
        return [*self.reading, *self.batch.rows]

    def begin(self, row: Live) -> None:
        """Takes a row in, from the longest snapshot of its beginning."""
        if row.generator is None:
            prepare(row, self.served.vocab, self.device)
        row.cached = max(row.cached, row.base)
        if row.base == 0 and not row.request.told:
            found = self.snapshots.longest(self.prints.weights, row.tokens[: row.end])
            if found is not None and found.length > row.at:
                row.state, row.at, row.cached = found.state, found.length, found.length
                if row.at == row.end and row.request.count and found.logits is not None:
                    self._written([row], found.logits, found.confidence)
                    return
        if row.at == row.end:
            self._nothing_to_write([row])
            return
        self.reading.append(row)

    def read(self, budget: int) -> None:
        """One pass over chunks of prompts, the longest waiting first: at most `budget` tokens, padding included."""
        for row in [row for row in self.reading if row.follows]:
            self.reading.remove(row)
            row.follows = False
            self.begin(row)
        if not self.reading:
            return
        rows, shape = self._next(budget)
        spans = [self._span(row) for row in rows]
        tokens = torch.zeros(len(rows), shape, dtype=torch.int64)
        for index, (row, span) in enumerate(zip(rows, spans, strict=True)):
            tokens[index, :span] = torch.tensor(row.tokens[row.at : row.at + span])
        fresh = [self.served.model.init_state(1) if row.state is None else row.state for row in rows]
        state = states.join(fresh) if len(fresh) > 1 else fresh[0]
        lengths = torch.tensor(spans, device=self.device)
        passed = self.served.read(tokens.to(self.device), state, lengths)
        self.figures.prompt_tokens += sum(spans)
        ended = []
        for index, (row, span) in enumerate(zip(rows, spans, strict=True)):
            if row.request.told:
                self._tell(row, passed.hidden[index, :span], span)
            row.at += span
            row.state = states.take(passed.state, torch.tensor([index], device=self.device))
            self.reading.remove(row)
            if row.at < row.end:
                self.reading.append(row)
                if _is_place(row):
                    self._keep(row, row.tokens[: row.at], row.state)
            else:
                ended.append(index)
        if ended:
            self._read_up(rows, ended, passed, lengths)

    def write(self) -> None:
        """One more token of every row that has been read."""
        rows = self.batch.rows
        if not rows:
            return
        passed, live = self.batch.step()
        logits = self.served.logits(passed.hidden[:, 0])
        surest = logits.amax(-1) - logits.logsumexp(-1)
        sure = self.served.confidence(passed.hidden, passed.signals, surest[:, None])[:, 0]
        if len(live) < len(logits):
            logits, sure = logits.index_select(0, live), sure.index_select(0, live)
        self._written(rows, logits, sure, joined=True)

    def drop(self, row: Live) -> object:
        """Lets a row go, wherever it is; gives its state."""
        if row in self.reading:
            self.reading.remove(row)
            return None
        state = self.batch.taken(row)
        self.batch.leave([row])
        return state

    def abandon(self) -> list[Live]:
        """All rows, of which nothing is kept: for a pass that failed."""
        rows = self.rows
        self.reading.clear()
        self.batch = Batch(self.served, self.device)
        return rows

    def _span(self, row: Live) -> int:
        """How many tokens a row reads in a pass: up to the next multiple of CHUNK, to the last one of PLACE, to the
        end."""
        left = row.end - row.at
        last = left - (row.base + row.end) % PLACE
        return min(last if last > 0 else left, CHUNK - row.position % CHUNK)

    def _next(self, budget: int) -> tuple[list[Live], int]:
        """Rows to read together, and the shape of their pass. Who asks what another asks waits for its snapshot."""
        shape, rows = 0, list[Live]()
        alone = (
            getattr(self.served.model, "router", None) is not None
        )  # its short passes are as long as the longest row's
        for row in self.reading:
            if row.base == 0 and not row.request.told:  # several answers to one prompt: it is read once
                row.follows = any(row.tokens == other.tokens for other in rows)
            if row.follows:
                continue
            own = next(size for size in SHAPES if size >= self._span(row))
            if not rows:
                shape = own
            elif alone or own != shape or (len(rows) + 1) * shape > budget or _window(row) != _window(rows[0]):
                continue
            rows.append(row)
        return rows, shape

    def _read_up(self, rows: Sequence[Live], ended: list[int], passed: Passed, lengths: Tensor) -> None:
        """What comes after the last token of prompts: of the rows `ended` of a pass."""
        index = torch.tensor(ended, device=self.device)
        last = lengths.index_select(0, index) - 1
        hidden = passed.hidden[index, last]
        signals = {name: value[index, last][:, None] for name, value in passed.signals.items()}
        logits = self.served.logits(hidden)
        surest = logits.amax(-1) - logits.logsumexp(-1)
        sure = self.served.confidence(hidden[:, None], signals, surest[:, None])[:, 0]
        chosen = [rows[i] for i in ended]
        for place, row in enumerate(chosen):
            if row.end == len(row.tokens):
                self._keep(row, row.tokens, row.state, logits[place : place + 1], sure[place : place + 1])
        writing = [place for place, row in enumerate(chosen) if row.request.count]
        self._nothing_to_write([row for row in chosen if not row.request.count])
        if writing:
            some = torch.tensor(writing, device=self.device)
            self._written([chosen[i] for i in writing], logits.index_select(0, some), sure.index_select(0, some))

    def _started(self, row: Live) -> None:
        self.emit(row, Started(row.base + len(row.tokens), row.cached))
        for told in row.told:
            self.emit(row, told)
        row.told = []

    def _nothing_to_write(self, rows: Sequence[Live]) -> None:
        for row in rows:
            if row.request.told and row.end < len(row.tokens):
                tell(row, row.before[None] if row.before is not None else None, row.end, len(row.tokens))
            self._started(row)
            self.finish(row, "length", row.state)

    def _written(self, rows: Sequence[Live], logits: Tensor, sure: Tensor, joined: bool = False) -> None:
        """The next token of rows, which have a slot already if they have `joined`."""
        if not joined:
            for row in rows:
                self._started(row)
        self.figures.wrote(len(rows))
        going, leaving = [], []
        for row, event, reason in advance(rows, logits, sure, self.served.tokenizer.ends):
            self.emit(row, event)
            if reason is None:
                going.append(row)
                continue
            state = self.batch.taken(row) if joined else row.state
            if joined:
                self._keep(row, [*row.tokens, *row.written[:-1]], state, turn=True)
                leaving.append(row)
            self.finish(row, reason, state)
        if leaving:
            self.batch.leave(leaving)
        if not joined and going:
            self.batch.join(going)

    def _keep(
        self,
        row: Live,
        tokens: Sequence[int],
        state: object,
        logits: Tensor | None = None,
        sure: Tensor | None = None,
        turn: bool = False,
    ) -> None:
        """Keeps what was read for whoever begins alike. What a session remembers of is not known."""
        if row.base == 0:
            self.snapshots.keep(Snapshot(self.prints.weights, list(tokens), state, logits, sure, turn))

    def _tell(self, row: Live, hidden: Tensor, span: int) -> None:
        if row.request.logprobs is None:
            tell(row, None, row.at, row.at + span)
            return
        step = max(1, LOGITS // self.served.vocab)
        for first in range(0, span, step):
            part = self.served.logits(hidden[first : first + step])
            tell(row, part, row.at + first, row.at + first + len(part))


def _window(row: Live) -> int:
    """Rows are read together only where windows are filled alike: none is padded, which would move its sums."""
    return 0 if row.state is None else states.nbytes(row.state)


def _is_place(row: Live) -> bool:
    """Whether a text's state is kept where its reading stands: at CHUNK times powers of two, and at the last two places
    where it could be. A conversation may fork there, and a prompt share its beginning with another."""
    chunks, left = row.at // CHUNK, row.end - row.at
    return left < PLACE or (row.at % CHUNK == 0 and (chunks & (chunks - 1) == 0 or left < CHUNK))
