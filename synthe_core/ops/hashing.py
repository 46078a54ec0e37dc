"""Pseudo-random numbers as a function of position and seed: equal on every device and in any split of a sequence."""

from __future__ import annotations

from torch import Tensor

GOLDEN_GAMMA = -0x61C8864680B583EB  # SplitMix64's increment as int64: what separates the inputs of neighbouring hashes


def splitmix64(x: Tensor) -> Tensor:
    """SplitMix64's finalizer of each int64 of x; products wrap around. Source: Steele, Lea & Flood 2014."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x ^ (x >> 31 & (1 << 33) - 1)


def hash_uniform(positions: Tensor, seed: Tensor | int) -> Tensor:
    """Pseudo-random numbers in [0, 1), float32, one for each int64 position."""
    bits = splitmix64((positions + seed) * GOLDEN_GAMMA)
    return (bits >> 40 & (1 << 24) - 1).float() * 2.0**-24
