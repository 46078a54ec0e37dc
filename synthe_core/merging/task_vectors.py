"""What the methods that add up differences from a base share: thin them out, agree on signs, add them up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 1 << 15
"""Numbers worked on at a time: a few such stretches fit a processor's second cache."""


def each(values: Sequence[float], count: int) -> list[float]:
    """A value for each of `count` models; one value is for all of them."""
    if len(values) not in (1, count):
        raise ValueError(f"{len(values)} values for {count} models")
    return list(values) * (count if len(values) == 1 else 1)


def total(weights: Sequence[float]) -> float:
    """The sum of weights, or 1 where they cancel, so that dividing by it is safe."""
    found = sum(weights)
    return found if abs(found) > 1e-8 else 1.0


def differences(models: Iterable[Tensor], base: Tensor) -> list[Tensor]:
    """What each model has learnt beyond the base."""
    return [torch.sub(model, base).contiguous() for model in models]


def thinned(found: list[Tensor], keep: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
    """`keep(i, difference)` in the place of each difference, which is let go of as soon as that is known."""
    for index in range(len(found)):
        found[index] = keep(index, found[index])
    return found


def threshold(size: Tensor, kept: int) -> float:
    """The `kept`-th largest entry of `size`, whose entries are put into another order."""
    flat = size.reshape(-1).numpy()
    place = flat.size - kept
    flat.partition(place)
    return float(flat[place])


def largest(size: Tensor, density: float) -> Tensor:
    """Bool: the `density` share of largest entries. Entries equal to the smallest kept one are kept too."""
    kept = int(density * size.numel())
    if kept >= size.numel():
        return torch.ones_like(size, dtype=torch.bool)
    if kept == 0:
        return torch.zeros_like(size, dtype=torch.bool)
    return size >= threshold(size.clone(), kept)


def trim(difference: Tensor, density: float) -> Tensor:
    """The `density` share of largest magnitude, zeros elsewhere; as in `largest`, equals stay together."""
    kept = int(density * difference.numel())
    if kept >= difference.numel():
        return difference
    if kept == 0:
        return difference.zero_()
    least = threshold(difference.abs(), kept)
    for (block,) in blocks(difference):
        block.mul_(block.abs().ge_(least))
    return difference


def blocks(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The same stretch of each tensor, one after another, small enough that what is done to it stays in the cache.

    The tensors are contiguous and of one size; stretches are views.
    """
    flat = [tensor.view(-1) for tensor in tensors]
    for at in range(0, len(flat[0]), BLOCK):
        yield [each[at : at + BLOCK] for each in flat]


def rescaled(difference: Tensor, kept: Tensor, chance: Tensor | float, by: str | None) -> Tensor:
    """The entries that are `kept` (1, else 0), made up for the others.

    by: "chance" divides each by its chance to be kept, so that the expectation stays; "l1" gives the tensor the sum of
    magnitudes that it had; None leaves the entries as they are.
    """
    before = float(difference.abs().sum(dtype=torch.float64)) if by == "l1" else 0.0
    difference = difference.mul_(kept)
    if by == "chance":
        return difference.div_(chance)
    if by == "l1" and (after := float(difference.abs().sum(dtype=torch.float64))):
        return difference.mul_(before / after)
    return difference


def added(base: Tensor, found: list[Tensor], weights: Sequence[float], normalize: bool, scale: float) -> Tensor:
    """base + scale x the weighted sum of differences, over the sum of the weights where `normalize`."""
    divisor = total(weights) if normalize else 1.0
    merged = torch.empty_like(base, memory_format=torch.contiguous_format)
    for result, ground, *parts in blocks(merged, base.contiguous(), *found):
        torch.mul(parts[0], weights[0] * scale / divisor, out=result)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            result.add_(part, alpha=weight * scale / divisor)
        result.add_(ground)
    return merged


def agreed(
    base: Tensor,
    found: list[Tensor],
    weights: Sequence[float],
    normalize: bool,
    scale: float,
    sign: str = "sum",
) -> Tensor:
    """base + scale x the disjoint mean: at each entry, of those differences alone whose sign the majority has.

    The majority's sign is that of the weighted sum; with sign="count" that of the sum of signs, with sign="plain" that
    of the sum without weights. An exact tie is positive.
    normalize: divide at each entry by the weights that took part there, so that it is a mean and no sum.
    """
    merged = torch.empty_like(base, memory_format=torch.contiguous_format)
    for result, ground, *parts in blocks(merged, base.contiguous(), *found):
        weighted = [part * weight for part, weight in zip(parts, weights, strict=True)]
        voters = parts if sign == "plain" else [each.sign() for each in weighted] if sign == "count" else weighted
        votes = voters[0].clone()
        for voter in voters[1:]:
            votes.add_(voter)
        side = (
            votes.ge_(0).mul_(2).sub_(1)
        )  # +1 or -1: truth as numbers, for what handles bools is several times slower
        result.zero_()
        shares = torch.zeros_like(votes)
        for part, weight in zip(weighted, weights, strict=True):
            joins = (part * side).gt_(0)
            result.addcmul_(part, joins)
            shares.add_(joins, alpha=weight)
        if normalize:
            result.div_(shares.add_(shares.abs().lt_(1e-8)))  # 1 where nobody took part
        result.mul_(scale).add_(ground)
    return merged
