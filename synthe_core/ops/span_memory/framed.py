"""The span memory a span at a time, in torch, for any device: the memory is constant within a span, so that all of its
tokens are matrix products."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.frames import FrameLayout, may_read_sizes, most_spans
from synthe_core.ops.span_memory.reference import (
    MIN_SQUARE,
    SpanOutput,
    SpanState,
    choose,
    learning_rate,
    means,
    span_memory,
    step,
)


class SpanFrames(NamedTuple):
    """The layout of a pass in frames, one a span, each row by its own clock.

    last: int64 [B], the last frame of each row; fewest: the smallest of them; frames: how many there are.
    """

    layout: FrameLayout
    last: Tensor
    fewest: int
    frames: int

    @classmethod
    def of(cls, finished: Tensor, span: int) -> SpanFrames:
        """finished bool [B, T]: the span before a token has ended. A span has at most `span` real tokens."""
        frame = finished.cumsum(1)  # a token's span, counted from the one that was pending
        token = torch.arange(finished.shape[1], device=finished.device)
        rank = token - torch.where(finished, token, 0).cummax(1).values
        last = frame[:, -1]
        time = finished.shape[1]
        fewest, most, longest = 0, most_spans(span, time), min(span, time) - 1
        if may_read_sizes(finished):
            fewest, most, longest = torch.stack([*last.aminmax(), rank.max()]).tolist()
        size = min(longest + 1, span)
        return cls(FrameLayout.spans(frame, rank, most + 1, size), last, fewest, most + 1)

    def split(self, x: Tensor) -> Tensor:
        """x [B, T, H, ...] by frames: [G, B, H, C, ...]."""
        return self.layout.split(x).movedim((1, 3), (0, 2)).contiguous()

    def join(self, x: Tensor) -> Tensor:
        """x [G, B, H, C, ...] back by tokens: [B, T, H, ...]."""
        return self.layout.join(x.movedim((0, 2), (1, 3)))


class Tokens(NamedTuple):
    """The tokens of one frame, or of all in a leading axis G: keys and values [B, H, C, K or V], both side by side,
    ‖v‖², weight and rate logit [B, H, C, 1]; and α and η of the span [B, H, 1, 1]."""

    keys: Tensor
    values: Tensor
    both: Tensor
    size: Tensor
    weight: Tensor
    logit: Tensor
    alpha: Tensor
    eta: Tensor


@span_memory.kernel("framed", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def framed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rate: Tensor,
    sharpness: Tensor | None,
    decay: Tensor,
    momentum: Tensor | None,
    weight: Tensor,
    finished: Tensor,
    memory: Tensor,
    velocity: Tensor,
    pending: Tensor,
    tally: Tensor,
    span: int,
    online: bool = False,
) -> SpanOutput:
    """Torch: tokens laid out in frames, one a span, each row by its own clock; a loop over frames."""
    frames = SpanFrames.of(finished, span)
    eta = torch.zeros_like(decay) if momentum is None else momentum
    q, k, v = (frames.split(x) for x in (query, key, value))
    w, logit = frames.split(weight[..., None])[..., None], frames.split(rate)[..., None]
    tallies = frames.split(torch.stack([torch.ones_like(decay), decay, eta], -1) * weight[..., None, None]).sum(3)
    tallies = tallies + F.pad(tally[None], (*[0, 0] * 3, 0, frames.frames - 1))
    length = v.square().sum(-1, keepdim=True).clamp_min(MIN_SQUARE)
    tokens = Tokens(k, v, torch.cat([k, v], -1), length, w, logit, *means(tallies))
    state = SpanState(memory, velocity, pending, tally)
    memories, errors, rates, state = walk(tokens, state, frames, sharpness, momentum is not None, online)
    last = tallies.gather(0, frames.last.view(1, -1, 1, 1).expand(1, *tallies.shape[1:]))[0]
    read, error, used = frames.join(q @ memories), frames.join(errors), frames.join(rates)
    return SpanOutput(read, error[..., 0], used[..., 0], state._replace(tally=last))


def walk(
    tokens: Tokens, state: SpanState, frames: SpanFrames, sharpness: Tensor | None, momentum: bool, online: bool
) -> tuple[Tensor, Tensor, Tensor, SpanState]:
    """The loop over frames: the memory that each reads [G, B, H, K, V], its errors and rates [G, B, H, C, 1], and the
    state after the last."""
    memory, velocity, pending, tally = state
    sharp = None if sharpness is None else sharpness[:, None, None]
    memories, errors, rates = [], [], []
    for index, each in enumerate(zip(*(x.unbind(0) for x in tokens), strict=True)):
        frame = Tokens(*each)
        error = (frame.keys @ memory - frame.values).square().sum(-1, keepdim=True) / frame.size
        r = frame.weight * learning_rate(frame.logit, sharp, error)
        if online:
            keys, values, beta = (x.transpose(1, 2) for x in (frame.keys, frame.values, r))
            pending = delta_rule(keys, keys, values, beta[..., 0], None, pending)[1]
        else:
            pending = pending + (r * frame.keys).mT @ frame.both
        memories.append(memory)
        errors.append(error)
        rates.append(r)
        if index < frames.frames - 1:
            before = (memory, velocity, pending)
            after = step(*before, frame.alpha, frame.eta, momentum, online)
            if index >= frames.fewest:  # some rows have no later span
                ended = index < frames.last
                after = tuple(choose(ended, new, old) for new, old in zip(after, before, strict=True))  # type: ignore[assignment]
            memory, velocity, pending = after
    return torch.stack(memories), torch.stack(errors), torch.stack(rates), SpanState(memory, velocity, pending, tally)
