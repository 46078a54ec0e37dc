"""Several tokens of each of some sequences through a `FusedDecoder`: every token's numbers are those of a pass of one
token, to the bit, and the states after any of them can be had.

In C a pass has rows with windows of their own, `capacity` entries apart. The tokens of one sequence are rows whose
windows are one entry apart in the same buffer: token t finds what the tokens before it have written. A state of fixed
size is written row below row, and token t reads the row that token t - 1 has written; each row is the state after a
token. The rows of such a learner are computed one after the other, and all else by several threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from synthe_core.inference.fused_decoder import SIGNALS, FusedDecoder, _angles
from synthe_core.inference.fused_recurrent import FORMS, StateRows, begin_rows
from synthe_core.layers.attention import Attention, AttentionState
from synthe_core.layers.growing_window import Place, extended
from synthe_core.model.language_model import ModelState
from synthe_core.ops.fused_decode import KALMAN, RG_LRU, RWKV7, Step

FLOAT = 4  # bytes


class FusedPass:
    """hidden: the head's input [N, D] after each token, sequence by sequence. signals: [N] each."""

    signals: Mapping[str, Tensor]

    @torch.inference_mode()
    def __init__(self, decoder: FusedDecoder, tokens: Many[Many[int]], befores: Many[ModelState]) -> None:
        """tokens: at least one of each sequence; befores: the states of one row that they continue."""
        self._learners = decoder._learners
        self._befores, self._counts = befores, [len(each) for each in tokens]
        ids = torch.tensor([token for each in tokens for token in each])[:, None]
        places = [before.position + torch.arange(n) for before, n in zip(befores, self._counts, strict=True)]
        positions = torch.cat(places)[:, None]
        x = decoder.model.embed(ids, positions)[:, 0].contiguous()
        self._held: list[Tensor] = []  # what C has the addresses of
        angles: dict[Any, tuple[Tensor, Tensor]] = {}
        self._signals = torch.empty(0, len(SIGNALS))  # [N, 2], of the last learner that has some
        self._places: list[list[_Place]] = []
        filled: list[tuple[ctypes.Array[Step], slice]] = []
        first = 0
        for before, count in zip(befores, self._counts, strict=True):
            steps = type(decoder._steps).from_buffer_copy(decoder._steps)
            self._places.append(self._fill(steps, before, slice(first, first + count), positions, angles))
            filled.append((steps, slice(first, first + count)))
            first += count
        _run(decoder, filled, x, decoder._adapters(len(x)))
        self.hidden: Tensor = decoder.model.norm(x)
        named = {name: self._signals[:, column] for column, name in enumerate(SIGNALS)}
        self.signals = MappingProxyType(named if self._signals.numel() else {})

    def _fill(
        self, steps: ctypes.Array[Step], before: ModelState, rows: slice, positions: Tensor, angles: dict[Any, Any]
    ) -> list[_Place]:
        """The addresses of one sequence's windows and states, and where what its tokens write goes."""
        count = rows.stop - rows.start
        places: list[_Place] = []
        real: dict[tuple[int, int], Tensor] = {}
        states = [each for block in before.blocks for each in block]
        for step, learner, state in zip(steps, self._learners, states, strict=True):
            if (form := FORMS.get(type(learner))) is not None:
                places.append(begin_rows(step, state, form.state, count))
                step.in_order = True
                if form.kind == KALMAN:
                    self._place_signals(step, rows, len(positions))
                if form.kind == RG_LRU:
                    step.rg_lru.positions = positions[rows].data_ptr()
                continue
            if not isinstance(learner, Attention):
                places.append(None)
                continue
            place = extended(state.keys, state.values, learner.window, count)
            places.append(place)
            step.keys, step.values = place.keys.data_ptr(), place.values.data_ptr()
            step.capacity, step.start, step.past = 1, place.start - (count - 1), place.past + count - 1
            key = state.filled.data_ptr(), place.past
            if key not in real:  # an entry that fell out of a full window is not real any more
                real[key] = state.filled.clamp_max(place.past) + torch.arange(count, dtype=state.filled.dtype)
                self._held.append(real[key])
            step.filled = real[key].data_ptr()
            cos, sin = _angles(learner, positions, angles)
            offset = rows.start * (learner.turned // 2) * FLOAT
            step.cos, step.sin = cos.data_ptr() + offset, sin.data_ptr() + offset
        self._held += [each for pair in angles.values() for each in pair]
        return places

    def _place_signals(self, step: Step, rows: slice, count: int) -> None:
        """Of a sequence's tokens; those of later learners take the place of earlier ones'."""
        if not self._signals.numel():
            self._signals = torch.empty(count, len(SIGNALS))
        step.signals = self._signals[rows].data_ptr()

    def has_state(self, index: int, count: int) -> bool:
        return True

    @torch.inference_mode()
    def state(self, index: int, count: int) -> ModelState:
        """The state of sequence `index` after the first `count` of its tokens. States after more of them that were had
        before are given up."""
        before = self._befores[index]
        pairs = zip([each for block in before.blocks for each in block], self._places[index], strict=True)
        counts: dict[tuple[int, int], Tensor] = {}
        learners = iter(self._learners)
        after = iter([_after(next(learners), each, place, count, counts) for each, place in pairs])
        return ModelState(before.position + count, [[next(after) for _ in block] for block in before.blocks])

    def release(self) -> None:
        """Gives all states after this pass up: what is written behind the states before it may be overwritten."""
        for place in (place for places in self._places for place in places if isinstance(place, Place)):
            place.windows(0)


_Place = Place | StateRows | None


def _after(learner: Any, before: Any, place: _Place, count: int, counts: dict[tuple[int, int], Tensor]) -> Any:
    if place is None:
        return before
    if isinstance(place, StateRows):
        return place.state(count)
    keys, values = place.windows(count, learner.window)
    key = before.filled.data_ptr(), keys.shape[1]
    if key not in counts:
        counts[key] = (before.filled + count).clamp_max(keys.shape[1])
    return AttentionState(keys, values, counts[key])


def _run(decoder: FusedDecoder, filled: Many[tuple[ctypes.Array[Step], slice]], x: Tensor, adapters: list[int]) -> None:
    """All steps over all rows: learners with a state sequence by sequence, what lies between for all together."""
    steps, _ = filled[0]
    if len(filled) == 1:
        decoder.run(steps, x, adapters)
        return
    for first, end in _calls(steps):
        if not any(steps[n].filled is not None or steps[n].before[0] for n in range(first, end)):  # no state
            decoder.run(_some(steps, first, end), x, adapters, first)
            continue
        for own, each in filled:
            decoder.run(_some(own, first, end), x[each], adapters[each], first)


def _calls(steps: ctypes.Array[Step]) -> Iterator[tuple[int, int]]:
    """The steps of each call, first to end: those that read what a step before them reads are in one with it, and all
    are in one where learners share values."""
    first = 0
    if any(step.kind == RWKV7 and step.rwkv7.shares for step in steps):
        yield 0, len(steps)
        return
    for number in range(1, len(steps) + 1):
        if number == len(steps) or not (steps[number].residual.reads_same or steps[number].residual.shares_norm):
            yield first, number
            first = number


def _some(steps: ctypes.Array[Step], first: int, end: int) -> ctypes.Array[Step]:
    return (Step * (end - first)).from_buffer(steps, first * ctypes.sizeof(Step))
