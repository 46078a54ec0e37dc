"""Task vectors: differences from a base, made sparse, merged by sign, and added to the base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 1 << 15
"""Numbers processed at a time: a few such blocks fit into a processor's L2 cache."""


def per_model(values: Sequence[float], count: int) -> list[float]:
    """A value for each of `count` models; one value is for all of them."""
    if len(values) not in (1, count):
        raise ValueError(f"{len(values)} values for {count} models")
    return list(values) * (count if len(values) == 1 else 1)


def weight_sum(weights: Sequence[float]) -> float:
    """The sum of weights, or 1 if they cancel, so that division is safe."""
    weight_sum = sum(weights)
    return weight_sum if abs(weight_sum) > 1e-8 else 1.0


def differences(models: Iterable[Tensor], base: Tensor) -> list[Tensor]:
    """model - base for each model."""
    return [torch.sub(model, base).contiguous() for model in models]


def sparsified(vectors: list[Tensor], sparsify: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
    """Replaces each difference by `sparsify(i, difference)`, in place, so that only one exists twice at a time."""
    for index in range(len(vectors)):
        vectors[index] = sparsify(index, vectors[index])
    return vectors


def threshold(size: Tensor, count: int) -> float:
    """The `count`-th largest entry of `size`, whose entries are reordered."""
    flat = size.reshape(-1).numpy()
    place = flat.size - count
    flat.partition(place)
    return float(flat[place])


def largest(size: Tensor, density: float) -> Tensor:
    """Bool: the `density` share of largest entries, and those equal to the smallest of them."""
    count = int(density * size.numel())
    if count >= size.numel():
        return torch.ones_like(size, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(size, dtype=torch.bool)
    return size >= threshold(size.clone(), count)


def trim(difference: Tensor, density: float) -> Tensor:
    """The `density` share of entries of largest magnitude, zeros elsewhere; ties as in `largest`."""
    count = int(density * difference.numel())
    if count >= difference.numel():
        return difference
    if count == 0:
        return difference.zero_()
    least = threshold(difference.abs(), count)
    for (block,) in blocks(difference):
        block.mul_(block.abs().ge_(least))
    return difference


def blocks(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Views of the same BLOCK entries of each tensor, one block after another, so that work on them stays in the cache.

    The tensors are contiguous and of one size.
    """
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, len(flat[0]), BLOCK):
        yield [each[start : start + BLOCK] for each in flat]


def rescaled(difference: Tensor, mask: Tensor, probability: Tensor | float, by: str | None) -> Tensor:
    """The entries in `mask` (1, else 0), scaled to compensate for the others.

    by: "chance" divides each by its probability of retention, which preserves the expectation; "l1" preserves the L1
    norm of the tensor; None does not scale.
    """
    before = float(difference.abs().sum(dtype=torch.float64)) if by == "l1" else 0.0
    difference = difference.mul_(mask)
    if by == "chance":
        return difference.div_(probability)
    if by == "l1" and (after := float(difference.abs().sum(dtype=torch.float64))):
        return difference.mul_(before / after)
    return difference


def add_differences(
    base: Tensor, vectors: list[Tensor], weights: Sequence[float], normalize: bool, scale: float
) -> Tensor:
    """base + scale x the weighted sum of vectors, divided by the sum of the weights with `normalize`."""
    divisor = weight_sum(weights) if normalize else 1.0
    merged = torch.empty_like(base, memory_format=torch.contiguous_format)
    for result, base_block, *parts in blocks(merged, base.contiguous(), *vectors):
        torch.mul(parts[0], weights[0] * scale / divisor, out=result)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            result.add_(part, alpha=weight * scale / divisor)
        result.add_(base_block)
    return merged


def merge_by_sign(
    base: Tensor,
    vectors: list[Tensor],
    weights: Sequence[float],
    normalize: bool,
    scale: float,
    sign: str = "sum",
) -> Tensor:
    """base + scale x the disjoint mean: at each entry, over the vectors that have the majority's sign.

    The majority's sign is that of the weighted sum; with sign="count" that of the sum of signs, with sign="plain" that
    of the sum without weights. An exact tie is positive.
    normalize: divide each entry by the sum of the weights that take part there, which gives a mean instead of a sum.
    """
    merged = torch.empty_like(base, memory_format=torch.contiguous_format)
    for result, base_block, *parts in blocks(merged, base.contiguous(), *vectors):
        weighted = [part * weight for part, weight in zip(parts, weights, strict=True)]
        voters = parts if sign == "plain" else [each.sign() for each in weighted] if sign == "count" else weighted
        votes = voters[0].clone()
        for voter in voters[1:]:
            votes.add_(voter)
        majority = votes.ge_(0).mul_(2).sub_(1)  # +1 or -1 as floats: operations on bools are several times slower
        result.zero_()
        weight_total = torch.zeros_like(votes)
        for part, weight in zip(weighted, weights, strict=True):
            agrees = (part * majority).gt_(0)
            result.addcmul_(part, agrees)
            weight_total.add_(agrees, alpha=weight)
        if normalize:
            result.div_(weight_total.add_(weight_total.abs().lt_(1e-8)))  # divide by 1 where no difference takes part
        result.mul_(scale).add_(base_block)
    return merged
