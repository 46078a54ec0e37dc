"""The span memory a span at a time, in torch, for any device: within a span the memory holds still, so that all of its
tokens are matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.span_memory.reference import FLOOR, Learned, SpanState, choose, means, rated, span_memory, step


@span_memory.kernel("framed", rank=10, tolerance=1e-5)
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
) -> Learned:
    """Torch: tokens laid out in frames, one a span, each row by its own clock; a loop over frames."""
    time, device = query.shape[1], query.device
    frame = finished.cumsum(1)  # a token's span, counted from the one that was pending
    token = torch.arange(time, device=device)
    first = torch.where(finished, token, 0).cummax(1).values
    fewest, most = frame[:, -1].aminmax()
    least, ends, widest = torch.stack([fewest, most, (token - first).max()]).tolist()
    frames, width = ends + 1, min(widest + 1, span)
    place = (token - first).clamp_max(width - 1)  # a span's real tokens all have a place of their own

    # The token at every place of every frame, [B, G C]; `time`, a row of zeros, where there is none.
    source = torch.full((len(frame), frames * width + 1), time, device=device)
    slot = torch.where(token - first < width, frame * width + place, frames * width)
    source = source.scatter_(1, slot, token.expand_as(slot))[:, :-1]
    source = source + torch.arange(len(frame), device=device)[:, None] * (time + 1)

    def laid_out(x: Tensor) -> Tensor:
        """x [B, T, H, ...] by frames: [G, B, H, C, ...]."""
        x = F.pad(x, (*[0, 0] * (x.dim() - 2), 0, 1))
        x = x.flatten(0, 1).index_select(0, source.flatten()).view(-1, frames, width, *x.shape[2:])
        return x.movedim((1, 3), (0, 2)).contiguous()

    eta = torch.zeros_like(decay) if momentum is None else momentum
    q, k, v = (laid_out(x) for x in (query, key, value))
    w, logit = laid_out(weight[..., None])[..., None], laid_out(rate)[..., None]
    told = laid_out(torch.stack([torch.ones_like(decay), decay, eta], -1) * weight[..., None, None]).sum(3)
    told = told + F.pad(tally[None], (*[0, 0] * 3, 0, ends))
    alpha, steady = means(told)
    sharp = None if sharpness is None else sharpness[:, None, None]
    length, kv = v.square().sum(-1, keepdim=True).clamp_min(FLOOR), torch.cat([k, v], -1)
    memories, errors, rates = [], [], []
    parts = zip(*(x.unbind(0) for x in (k, v, kv, length, w, logit, alpha, steady)), strict=True)
    for index, (keys, values, both, size, counts, base, decays, goes_on) in enumerate(parts):
        error = (keys @ memory - values).square().sum(-1, keepdim=True) / size
        r = counts * rated(base, sharp, error)
        if online:
            keys, values, beta = (x.transpose(1, 2) for x in (keys, values, r))
            pending = delta_rule(keys, keys, values, beta[..., 0], None, pending)[1]
        else:
            pending = pending + (r * keys).mT @ both
        memories.append(memory)
        errors.append(error)
        rates.append(r)
        if index < ends:
            after = step(memory, velocity, pending, decays, goes_on, momentum is not None, online)
            if index >= least:  # some rows have no later span
                ended = index < frame[:, -1]
                before = (memory, velocity, pending)
                after = tuple(choose(ended, new, old) for new, old in zip(after, before, strict=True))  # type: ignore[assignment]
            memory, velocity, pending = after

    back = (frame * width + place + torch.arange(len(frame), device=device)[:, None] * (frames * width)).flatten()

    def by_token(x: Tensor) -> Tensor:
        """x [G, B, H, C, ...] back to [B, T, H, ...]."""
        x = x.movedim((0, 2), (1, 3)).flatten(0, 2)
        return x.index_select(0, back).view(-1, time, *x.shape[1:])

    read, error, used = by_token(q @ torch.stack(memories)), by_token(torch.stack(errors)), by_token(torch.stack(rates))
    left = told.gather(0, frame[:, -1].view(1, -1, 1, 1).expand(1, *told.shape[1:]))[0]
    return Learned(read, error[..., 0], used[..., 0], SpanState(memory, velocity, pending, left))
