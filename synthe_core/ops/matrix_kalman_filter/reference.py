"""The definition of `matrix_kalman_filter`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.ops.dispatch import op, require_float


class MatrixFiltered(NamedTuple):
    """mean [B, T, H, N] and covariance [B, T, H, N, N] of the state given all observations up to each token; those at
    the last token are the state."""

    mean: Tensor
    covariance: Tensor


@op(batch_invariant=("cpu",))
def matrix_kalman_filter(
    precision: Tensor,
    information: Tensor,
    transition: Tensor,
    process_noise: Tensor,
    mean: Tensor,
    covariance: Tensor,
    active: Tensor | None = None,
) -> MatrixFiltered:
    """The Kalman filter of x_t = a ⊙ x_{t-1} + N(0, Diag(q)), z_t = C x_t + N(0, R_t), every head by itself, in
    information form: J = Cᵀ R⁻¹ C and h = Cᵀ R⁻¹ z are all that it needs of an observation.

        predict   x⁻ = a ⊙ x,  P⁻ = a aᵀ ⊙ P + Diag(q)
        update    P = (P⁻⁻¹ + J)⁻¹,  x = x⁻ + P (h - J x⁻)

    precision J [B, T, H, N, N], symmetric and positive semidefinite; information h [B, T, H, N]; transition a and
    process_noise q > 0 [H, N]; mean x [B, H, N] and covariance P [B, H, N, N], positive semidefinite, before the first
    token; all of one dtype, float32 or float64. Where `active` (bool [B, T], None = everywhere) is False no time
    passes. Raises InputError for narrower dtypes and for shapes that do not fit. Source: Kalman 1960; the update is
    computed by Cholesky factors, so that P stays positive definite.
    """
    check(precision, information, transition)
    means, covariances = [], []
    identity = torch.eye(transition.shape[-1], dtype=precision.dtype, device=precision.device)
    for t in range(precision.shape[1]):
        prior = transition[:, :, None] * transition[:, None] * covariance + torch.diag_embed(process_noise)
        root = torch.linalg.cholesky(prior)
        inner = torch.linalg.cholesky(identity + root.mT @ precision[:, t] @ root)
        half = torch.linalg.solve_triangular(inner, root.mT, upper=False)
        updated = half.mT @ half
        predicted = transition * mean
        innovation = information[:, t] - (precision[:, t] @ predicted[..., None])[..., 0]
        estimate = predicted + (updated @ innovation[..., None])[..., 0]
        if active is not None:
            step = active[:, t, None, None]
            estimate, updated = torch.where(step, estimate, mean), torch.where(step[..., None], updated, covariance)
        mean, covariance = estimate, updated
        means.append(mean)
        covariances.append(covariance)
    return MatrixFiltered(torch.stack(means, dim=1), torch.stack(covariances, dim=1))


def check(precision: Tensor, information: Tensor, transition: Tensor) -> None:
    """InputError unless the dtype is wide enough and the shapes are those of one filter."""
    require_float("precision", precision)
    heads, size = transition.shape
    if precision.shape[2:] != (heads, size, size) or information.shape[2:] != (heads, size):
        raise InputError(
            f"precision is {list(precision.shape)} and information {list(information.shape)}",
            f"with transition {[heads, size]} they are [B, T, {heads}, {size}, {size}] and [B, T, {heads}, {size}]",
        )
