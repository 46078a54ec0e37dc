"""What the methods that add up differences from a base share: thin them out, agree on signs, add them up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


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
    return [model - base for model in models]


def thinned(found: list[Tensor], keep: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
    """`keep(i, difference)` in the place of each difference, which is let go of as soon as that is known."""
    for index in range(len(found)):
        found[index] = keep(index, found[index])
    return found


def largest(size: Tensor, density: float) -> Tensor:
    """Bool: the `density` share of entries of largest size. Entries equal to the smallest kept one are kept too."""
    kept = int(density * size.numel())
    if kept >= size.numel():
        return torch.ones_like(size, dtype=torch.bool)
    if kept == 0:
        return torch.zeros_like(size, dtype=torch.bool)
    place = size.numel() - kept
    return size >= float(np.partition(size.reshape(-1).numpy(), place)[place])


def trim(difference: Tensor, density: float) -> Tensor:
    """The `density` share of largest magnitude, zeros elsewhere."""
    if density >= 1:
        return difference
    return difference.mul_(largest(difference.abs(), density))


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
    merged = found[0] * (weights[0] * scale / divisor)
    for difference, weight in zip(found[1:], weights[1:], strict=True):
        merged.add_(difference, alpha=weight * scale / divisor)
    return merged.add_(base)


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
    elected = torch.zeros_like(base)
    for difference, weight in zip(found, weights, strict=True):
        if sign != "plain" and weight != 1:
            difference.mul_(weight)
        elected.add_(difference.sign() if sign == "count" else difference)
        if sign == "plain":
            difference.mul_(weight)
    positive = elected >= 0
    merged, shares = elected.zero_(), torch.zeros_like(base) if normalize else None
    for difference, weight in zip(found, weights, strict=True):
        joins = torch.where(positive, difference > 0, difference < 0)
        merged.add_(difference.mul_(joins))
        if shares is not None:
            shares.add_(joins, alpha=weight)
    if shares is not None:
        merged.div_(shares.masked_fill_(shares.abs() < 1e-8, 1.0))
    return merged.mul_(scale).add_(base)
