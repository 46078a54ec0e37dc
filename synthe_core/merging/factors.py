"""Low-rank factors of matrices: the best approximation of a given rank."""

from __future__ import annotations

import torch
from torch import Tensor


def factored(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-`rank` approximation up @ down of `matrix` [out, in] (Eckart-Young): down [rank, in], up [out,
    rank].

    up contains the singular values; beyond the matrix's own rank both are zeros.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return _padded(right[:rank], left[:, :rank] * values[:rank], rank)


def refactored(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`factored(up @ down, rank)` without forming the product: by QR of both factors and an SVD of the small middle."""
    if down.shape[0] >= min(up.shape[0], down.shape[1]):
        return factored(up @ down, rank)
    columns, upper = torch.linalg.qr(up)
    rows, lower = torch.linalg.qr(down.T)
    left, values, right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return _padded(right[:rank] @ rows.T, columns @ (left[:, :rank] * values[:rank]), rank)


def _padded(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    missing = rank - down.shape[0]
    if missing <= 0:
        return down, up
    return torch.cat([down, down.new_zeros(missing, down.shape[1])]), torch.cat(
        [up, up.new_zeros(up.shape[0], missing)], 1
    )
