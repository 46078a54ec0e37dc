"""States of single channels: averages, scans, and the Kalman filter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.hardware.sequence import SequenceRanks
from synthe_core.ops.gated_average import gated_average
from synthe_core.ops.kalman_filter import Filtered, kalman_filter
from synthe_core.ops.linear_scan import linear_scan
from synthe_core.ops.selective_scan import selective_scan
from synthe_core.ops.sequence.exchange import Element, alone, exclusive_scan
from synthe_core.ops.sequence.memories import decayed_before


@linear_scan.over_ranks
def _(ranks: SequenceRanks, decay: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    def after() -> Tensor:
        return linear_scan(decay, value, None)[1]

    before = decayed_before(ranks, after, decay.prod(1), value[:, 0].shape, state)
    with alone():
        return linear_scan(decay, value, before)


@gated_average.over_ranks
def _(ranks: SequenceRanks, gate: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    def after() -> Tensor:
        return gated_average(gate, value, None)[1]

    before = decayed_before(ranks, after, F.logsigmoid(gate).sum(1).exp(), value[:, 0].shape, state)
    with alone():
        return gated_average(gate, value, before)


@selective_scan.over_ranks
def _(
    ranks: SequenceRanks, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    decay = (delta.sum(1)[..., None] * A).exp()

    def after() -> Tensor:
        return selective_scan(x, delta, A, B, C, D, None)[1]

    before = decayed_before(ranks, after, decay, decay.shape, state)
    with alone():
        return selective_scan(x, delta, A, B, C, D, before)


def compose_maps(earlier: Element, later: Element) -> Element:
    """The product of 2 x 2 matrices, the later one on the left, over the sum of its lower row, which is positive: a
    Möbius map does not change by a factor. Entries are (top left, top right, bottom left, bottom right)."""
    (a, b, c, d), (e, f, g, h) = earlier, later
    product = e * a + f * c, e * b + f * d, g * a + h * c, g * b + h * d
    factor = (product[2] + product[3]).detach().reciprocal()
    a, b, c, d = (each * factor for each in product)
    return a, b, c, d


def chunk_map(squared: Tensor, process_noise: Tensor, precision: Tensor) -> Element:
    """What the tokens [B, T, D] make of a variance, P' = (a P + b) / (c P + d), entries [B, D]."""
    squared, process_noise = squared.expand_as(precision), process_noise.expand_as(precision)
    entries: Element = (squared, process_noise, precision * squared, precision * process_noise + 1)
    while (time := entries[0].shape[1]) > 1:
        even = time // 2 * 2
        pairs = [each[:, :even].unflatten(1, (-1, 2)) for each in entries]
        joined = compose_maps(tuple(each[:, :, 0] for each in pairs), tuple(each[:, :, 1] for each in pairs))
        rest = (each[:, even:] for each in entries)
        entries = tuple(torch.cat(each, 1) for each in zip(joined, rest, strict=True)) if even < time else joined
    a, b, c, d = (each[:, 0] for each in entries)
    return a, b, c, d


@kalman_filter.over_ranks
def _(
    ranks: SequenceRanks,
    observation: Tensor,
    transition: Tensor,
    process_noise: Tensor,
    observation_noise: Tensor,
    mean: Tensor,
    variance: Tensor,
    active: Tensor | None = None,
) -> Filtered:
    """First the variances, which do not depend on what is observed; the means are linear given them."""
    a, q, precision = transition, process_noise, observation_noise.reciprocal()
    if active is not None:
        step = active[..., None]
        a, q = torch.where(step, a, 1.0), torch.where(step, q, 0.0)
        precision = torch.where(step, precision, 0.0)
    one, zero = torch.ones_like(variance), torch.zeros_like(variance)
    identity = (one, zero, zero, one)
    own = chunk_map(a * a, q, precision) if ranks.rank + 1 < ranks.size else identity
    top, right, bottom, corner = exclusive_scan(ranks, compose_maps, own, identity)
    variance = (top * variance + right) / (bottom * variance + corner)
    arguments = observation, transition, process_noise, observation_noise

    def after() -> Tensor:
        return filtered.mean[:, -1]

    decay = one
    if ranks.rank + 1 < ranks.size:
        with alone():
            filtered = kalman_filter(*arguments, zero, variance, active)
        decay = (a * (1 - precision * filtered.variance)).prod(1)  # 1 - K, and K = P / r
    mean = decayed_before(ranks, after, decay, mean.shape, mean)
    with alone():
        return kalman_filter(*arguments, mean, variance, active)
