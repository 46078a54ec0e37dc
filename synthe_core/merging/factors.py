"""Matrices as products of two thin ones: the best of a given rank."""

from __future__ import annotations

import torch
from torch import Tensor


def factored(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(down [rank, in], up [out, rank]) whose product is the nearest to `matrix` [out, in] of that rank (Eckart-Young).

    up holds the singular values; beyond the matrix's own rank both are zeros.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return _padded(right[:rank], left[:, :rank] * values[:rank], rank)


def refactored(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`factored(up @ down, rank)` without the product: both sides get orthogonal bases, and only the middle is cut."""
    if down.shape[0] >= min(up.shape[0], down.shape[1]):
        return factored(up @ down, rank)
    columns, upper = torch.linalg.qr(up)
    rows, lower = torch.linalg.qr(down.T)
    left, values, right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return _padded(right[:rank] @ rows.T, columns @ (left[:, :rank] * values[:rank]), rank)


def _padded(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    more = rank - down.shape[0]
    if more <= 0:
        return down, up
    return torch.cat([down, down.new_zeros(more, down.shape[1])]), torch.cat([up, up.new_zeros(up.shape[0], more)], 1)
