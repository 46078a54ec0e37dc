"""Many small minimisations at once: BFGS in batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Objective = Callable[[Array, NDArray[Any]], tuple[Array, Array]]

ARMIJO, SHRINK, HALVINGS = 1e-4, 0.5, 40
TOLERANCE = 1e-10  # of the relative decrease, twice in a row
LONGEST_STEP = 5.0  # of one iteration, per coordinate


def minimise(objective: Objective, starts: Array, iterations: int = 400) -> tuple[Array, Array]:
    """Local minima [S, P] and their values [S] from each of the starts [S, P].

    objective(x [R, P], rows [R]) gives values [R] and gradients [R, P] of the problems `rows`, indices into the starts.
    BFGS with a line search that halves steps until the decrease is sufficient (Nocedal and Wright 2006, algorithm 6.1);
    with few parameters its dense matrix costs no more than the history of L-BFGS, of which it is the limit.
    """
    x = starts.copy()
    rows = np.arange(len(x))
    values, gradients = objective(x, rows)
    inverse = np.broadcast_to(np.eye(x.shape[1]), (len(x), x.shape[1], x.shape[1])).copy()
    active = np.isfinite(values)
    stalled = np.zeros(len(x), dtype=np.int64)
    for _ in range(iterations):
        rows = np.flatnonzero(active)
        if not len(rows):
            break
        step = _direction(inverse, gradients, rows)
        before, slope = values[rows], gradients[rows]
        new, value, gradient = _search(objective, x[rows], before, slope, step, rows)
        _update(inverse, rows, new - x[rows], gradient - slope)
        small = before - value <= TOLERANCE * np.abs(before)
        stalled[rows] = np.where(small, stalled[rows] + 1, 0)
        x[rows], values[rows], gradients[rows] = new, value, gradient
        restart = rows[small & (stalled[rows] == 1)]
        inverse[restart] = np.eye(x.shape[1])  # once along the gradient itself, before it counts as a minimum
        active[rows[stalled[rows] >= 2]] = False
    return x, values


def _direction(inverse: Array, gradients: Array, rows: NDArray[Any]) -> Array:
    """-H g, or -g where that does not descend, of bounded length."""
    gradient = gradients[rows]
    step = -np.einsum("rij,rj->ri", inverse[rows], gradient)
    uphill = np.einsum("ri,ri->r", step, gradient) >= 0
    step[uphill] = -gradient[uphill]
    longest = np.abs(step).max(axis=1, keepdims=True)
    return np.asarray(step * np.minimum(1.0, LONGEST_STEP / np.maximum(longest, 1e-300)))


def _search(
    objective: Objective, x: Array, value: Array, gradient: Array, step: Array, rows: NDArray[Any]
) -> tuple[Array, Array, Array]:
    """The first of the points x + step / 2^k that decreases each value enough; x itself where none does."""
    best, best_value, best_gradient = x.copy(), value.copy(), gradient.copy()
    slope = np.einsum("ri,ri->r", step, gradient)
    left, size = np.arange(len(x)), 1.0
    for _ in range(HALVINGS):
        trial = x[left] + size * step[left]
        values, gradients = objective(trial, rows[left])
        enough = values <= value[left] + ARMIJO * size * slope[left]
        done = left[enough]
        best[done], best_value[done], best_gradient[done] = trial[enough], values[enough], gradients[enough]
        left = left[~enough]
        if not len(left):
            break
        size *= SHRINK
    return best, best_value, best_gradient


def _update(inverse: Array, rows: NDArray[Any], moved: Array, changed: Array) -> None:
    """The BFGS update of each inverse, where the curvature along the step is positive."""
    product = np.einsum("ri,ri->r", moved, changed)
    good = product > 1e-14 * np.linalg.norm(moved, axis=1) * np.linalg.norm(changed, axis=1)
    rows, moved, changed, product = rows[good], moved[good], changed[good], product[good]
    if not len(rows):
        return
    rho = 1.0 / product
    left = np.eye(moved.shape[1]) - rho[:, None, None] * np.einsum("ri,rj->rij", moved, changed)
    own = np.einsum("rij,rjk,rlk->ril", left, inverse[rows], left)
    inverse[rows] = own + rho[:, None, None] * np.einsum("ri,rj->rij", moved, moved)
