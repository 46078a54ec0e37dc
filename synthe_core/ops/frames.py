"""Frames: where sequences are cut in time, and how tokens get into the pieces and back.

Chunks are C tokens from the start of a pass. Frames, spans and ticks lie at absolute positions, each row by its own, so
that any split of a sequence has the same ones: a pass may begin and end within a frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

POSITION_RANGE = 2**23  # a position modulo this is exact in float32; two tokens in a row are less than this apart


def may_read_sizes(x: Tensor) -> bool:
    """Whether shapes may depend on what tensors beside `x` hold. Elsewhere than on a CPU the host would wait for the
    device, and torch.compile and CUDA graphs know no such shapes: there the largest possible ones are used."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Entries `index` int64 [B, M] of each row of x [B, N, ...]: [B, M, ...]."""
    batch, count = x.shape[:2]
    rows = torch.arange(batch, device=x.device)[:, None] * count
    return x.flatten(0, 1).index_select(0, (rows + index).flatten()).unflatten(0, index.shape)


def gather_padded(x: Tensor, index: Tensor) -> Tensor:
    """`gather_rows`, with zeros where the index is N."""
    return gather_rows(pad_rows(x), index)


def add_rows(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """x [N, ...] with values [M, ...] added in place at rows `index` int64 [M], in a fixed order, so that runs repeat.

    On CUDA `index_add_` and `scatter_add_` add in the order in which threads arrive; `index_put_` sorts the rows first.
    """
    if x.device.type == "cuda":
        return x.index_put_((index,), values, accumulate=True)
    return x.index_add_(0, index, values)


def add_columns(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """x [B, N] with values [B, M] added in place at `index` int64 [B, M] of each row, in a fixed order."""
    rows = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    add_rows(x.view(-1), (rows + index).flatten(), values.flatten())
    return x


def pad_rows(x: Tensor) -> Tensor:
    """x [B, N, ...] with a row of zeros behind: [B, N + 1, ...]."""
    return F.pad(x, (*[0, 0] * (x.dim() - 2), 0, 1))


def indices_of_true(mask: Tensor, rank: Tensor, count: int) -> Tensor:
    """int64 [B, count]: where the first `count` True of each row of mask bool [B, T] stand; 0 where a row has fewer.

    rank: mask.cumsum(1), of which callers need more. No row may have more than `count`.
    """
    token = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    index = token.new_zeros(len(mask), count + 1)  # the last column takes every token that is False
    return index.scatter_(1, torch.where(mask, rank - 1, count), token)[:, :-1]


def split_chunks(x: Tensor, size: int) -> Tensor:
    """x [B, T, H, ...] as chunks [B H, N, size, ...], with zeros after the end of time."""
    if missing := -x.shape[1] % size:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    return x.unflatten(1, (-1, size)).movedim(3, 1).flatten(0, 1).contiguous()


def join_chunks(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of `split_chunks`, for a tensor of the batch, time and heads of `like`."""
    batch, time, heads = like.shape[:3]
    return x.unflatten(0, (batch, heads)).flatten(2, 3).movedim(1, 2)[:, :time]


class FrameLayout(NamedTuple):
    """T tokens of B rows laid out in G frames of C places, each row by its own cuts.

    source: int64 [B, G, C], which of a row's N entries stands at a place, plus the row's offset in rows of N + 1 laid
    end to end; entry N, a row of zeros, stands where there is no token. place: int64 [B, T], where each token stands,
    in places of all rows and frames laid end to end.
    """

    source: Tensor
    place: Tensor

    @classmethod
    def of(cls, source: Tensor, place: Tensor, entries: int, frames: int) -> FrameLayout:
        """From indices within a row: source [B, G C], place [B, T]."""
        row = torch.arange(len(source), device=source.device)[:, None]
        source = source + row * (entries + 1)
        return cls(source.unflatten(1, (frames, -1)), place + row * source.shape[1])

    @classmethod
    def aligned(cls, offset: Tensor, end: Tensor, time: int, size: int, frames: int) -> FrameLayout:
        """Frames of `size` places that end at multiples of `size` in absolute positions.

        A row's first frame begins with `offset` [B, 1] entries of earlier passes, so its entries are `size` pending
        ones and then the tokens of this pass. `end` [B, 1] is the place behind its last real token.
        """
        place = torch.arange(frames * size, device=offset.device).expand(len(offset), -1)
        return cls.of(entry_at(place, offset, end, time, size), offset + place[:, :time], size + time, frames)

    @classmethod
    def spans(cls, frame: Tensor, rank: Tensor, frames: int, size: int) -> FrameLayout:
        """One frame a span. frame [B, T]: each token's span, from 0; rank [B, T]: its place there.

        A token of rank `size` or more is padding; it stands in no frame and reads the last place of its own.
        """
        time = frame.shape[1]
        source = torch.full((len(frame), frames * size + 1), time, device=frame.device)
        slot = torch.where(rank < size, frame * size + rank, frames * size)
        token = torch.arange(time, device=frame.device).expand_as(slot)
        source = source.scatter_(1, slot, token)[:, :-1]
        return cls.of(source, frame * size + rank.clamp_max(size - 1), time, frames)

    def split(self, x: Tensor) -> Tensor:
        """Entries x [B, N, ...] by frames: [B, G, C, ...], zeros where no token stands."""
        return pad_rows(x).flatten(0, 1).index_select(0, self.source.flatten()).unflatten(0, self.source.shape)

    def join(self, x: Tensor) -> Tensor:
        """x [B, G, C, ...] back by tokens: [B, T, ...]."""
        return x.flatten(0, 2).index_select(0, self.place.flatten()).unflatten(0, self.place.shape)


def entry_at(place: Tensor, offset: Tensor, end: Tensor, time: int, size: int) -> Tensor:
    """The entries of `FrameLayout.aligned` at places [B, M], counted from the start of the first frame: those of
    earlier passes are 0 ... size - 1, this pass's tokens follow, and size + time stands for none."""
    entry = torch.where(place < offset, place, place + size - offset)
    return torch.where(place < end, entry, size + time)


class Ticks(NamedTuple):
    """A clock that ticks at every multiple of a period, over a pass of T tokens.

    columns: int64 [n], the tokens where it ticks for some row. due: bool [B, n], for which rows. held: int64 [T], how
    many columns have come by each token, so that entry held[t] of (the state before, one entry a column) is what t
    sees.
    """

    columns: Tensor
    due: Tensor
    held: Tensor

    @classmethod
    def of(cls, period: int, positions: Tensor, mask: Tensor | None, start: int | None = None) -> Ticks:
        """The ticks at `positions` int64 [B, T] where `mask`, bool [B, T] or None for all, is True.

        start: the first position of every row, where the host knows it: then nothing waits for the device.
        """
        due = positions % period == 0
        if mask is not None:
            due = due & mask
        ticks, time = due.any(dim=0), due.shape[1]
        if period == 1 or start is not None or (time == 1 and not may_read_sizes(due)):
            columns = torch.arange(-(start or 0) % period if time > 1 else 0, time, period, device=due.device)
            held = torch.zeros_like(ticks, dtype=torch.int64).index_fill_(0, columns, 1).cumsum(0)
            return cls(columns, due.index_select(1, columns), held)
        columns = ticks.nonzero().squeeze(1)
        return cls(columns, due.index_select(1, columns), ticks.cumsum(0))

    def hold(self, x: Tensor) -> Tensor:
        """x [B, 1 + n, ...], the entry before the pass and one a column, as every token sees it: [B, T, ...]."""
        return x.index_select(1, self.held)


class Spans(NamedTuple):
    """The spans of K tokens, at positions jK ... jK + K - 1, that finish in a pass of T tokens, each row by its own.

    A span is finished when a token of a later one comes, even where positions have gaps, and known from that token on.

    finished: bool [B, T], the spans before this token are finished as of it. num_finished: int64 [B, T], how many have
    finished in this pass as of each token. For the n-th of them, n < N: token, int64 [B, N], at which it finished;
    span, int64 [B, N], its j. lengths [B]: how many a row has, and mask [B, N] of those, None where all rows have N.
    """

    finished: Tensor
    num_finished: Tensor
    token: Tensor
    span: Tensor
    lengths: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, period: int, positions: Tensor, mask: Tensor | None, last: Tensor) -> Spans:
        """The spans of `period` tokens; `last` [B] is what `last_position` gave for the pass before."""
        first = positions[:, :1]
        stored = last.long()[:, None]
        previous = torch.where(stored < 0, first, first - (first - stored) % POSITION_RANGE)
        before = torch.cat([previous, positions[:, :-1]], 1) // period
        finished = positions // period > before
        if mask is not None:
            finished = finished & mask
        count = finished.cumsum(1)
        lengths = count[:, -1]
        fewest, most = 0, most_spans(period, finished.shape[1])
        if may_read_sizes(count):
            fewest, most = torch.stack(lengths.aminmax()).tolist()
        token = indices_of_true(finished, count, most)
        real = None if fewest == most else torch.arange(most, device=count.device) < lengths[:, None]
        return cls(finished, count, token, before.gather(1, token), lengths, real)

    def hold(self, x: Tensor) -> Tensor:
        """x [B, 1 + N, ...], the entry before the pass and one a span, as every token sees it: [B, T, ...]."""
        return gather_rows(x, self.num_finished)

    def last(self, x: Tensor) -> Tensor:
        """Of x [B, 1 + N, ...] what each row ends with: [B, ...]."""
        return gather_rows(x, self.lengths[:, None])[:, 0]


def most_spans(period: int, time: int) -> int:
    """How many spans of `period` tokens can finish in `time` tokens in a row."""
    return (time - 1) // period + 1


def last_position(positions: Tensor, lengths: Tensor | None, before: Tensor) -> Tensor:
    """The position of each row's last real token so far, modulo 2^23, in the dtype of `before` [B]; -1 without any."""
    if lengths is None:
        return (positions[:, -1] % POSITION_RANGE).to(before)
    last = positions.gather(1, (lengths - 1).clamp_min(0)[:, None])[:, 0] % POSITION_RANGE
    return torch.where(lengths > 0, last.to(before), before)
