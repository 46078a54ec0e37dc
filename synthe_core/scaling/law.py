"""Chinchilla's law of loss by size and tokens, and its fit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthe_core.scaling.minimise import Array, minimise
from synthe_core.scaling.points import FLOPS_PER_PARAMETER, Point

DELTA = 1e-3
"""Of the Huber loss, in the logarithm of the loss: differences beyond 0.1 % count linearly."""
STARTS = {
    "a": np.arange(0.0, 30.0, 5.0),
    "b": np.arange(0.0, 30.0, 5.0),
    "e": np.arange(-1.0, 1.5, 0.5),
    "alpha": np.arange(0.0, 2.5, 0.5),
    "beta": np.arange(0.0, 2.5, 0.5),
}
"""The grid of starts of Hoffmann et al. 2022, appendix D.3: 4,500 of them."""
PARAMETERS = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """L of N and D; NaN or infinite for constants of a resample that ran away."""
        with np.errstate(over="ignore", invalid="ignore"):
            return float(
                self.E + self.A * np.float64(parameters) ** -self.alpha + self.B * np.float64(tokens) ** -self.beta
            )

    @property
    def size_exponent(self) -> float:
        """a of N_opt ∝ C^a: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: float, per_parameter: float = FLOPS_PER_PARAMETER) -> tuple[float, float, float]:
        """The size N, the tokens D and the loss that are best for C = k N D FLOPs, with k `per_parameter`.

        N = G (C / k)^a, D = (C / k)^(1 - a) / G, with G = (alpha A / (beta B))^(1 / (alpha + beta)): equation 4 of
        Hoffmann et al. NaN where an exponent is not above 0: there is no optimum then.
        """
        if not (self.alpha > 0 and self.beta > 0):
            return math.nan, math.nan, math.nan
        product = flops / per_parameter
        log_g = math.log(self.alpha * self.A / (self.beta * self.B)) / (self.alpha + self.beta)
        log_n = log_g + self.size_exponent * math.log(product)
        try:
            parameters = math.exp(log_n)
            tokens = product / parameters
            return parameters, tokens, self.loss(parameters, tokens)
        except (OverflowError, ZeroDivisionError):
            return math.nan, math.nan, math.nan


class Problems:
    """The sum of Huber losses of ln L against points, each weighted, in coordinates that are easy to minimise in.

    ln L = logsumexp(a - alpha ln N, b - beta ln D, e), and the coordinates are a and b at the means of ln N and ln D.
    The Huber loss is divided by DELTA².
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.log_n = np.log([point.parameters for point in points])
        self.log_d = np.log([point.tokens for point in points])
        self.log_loss = np.log([point.loss for point in points])
        self._n, self._d = self.log_n - self.log_n.mean(), self.log_d - self.log_d.mean()

    def centered(self, theta: Array) -> Array:
        """(a, b, e, alpha, beta) [S, 5] in the coordinates of the minimisation."""
        x = theta.copy()
        x[:, 0] -= theta[:, 3] * self.log_n.mean()
        x[:, 1] -= theta[:, 4] * self.log_d.mean()
        return x

    def plain(self, x: Array) -> Array:
        theta = x.copy()
        theta[:, 0] += x[:, 3] * self.log_n.mean()
        theta[:, 1] += x[:, 4] * self.log_d.mean()
        return theta

    def predicted(self, x: Array) -> tuple[Array, Array]:
        """ln L [S, n], and the shares [S, n, 3] of the terms of size, tokens and E in L."""
        a, b, e, alpha, beta = (column[:, None] for column in x.T)
        terms = np.stack(np.broadcast_arrays(a - alpha * self._n, b - beta * self._d, e), axis=-1)
        top = terms.max(axis=-1, keepdims=True)
        parts = np.exp(terms - top)
        total = parts.sum(axis=-1, keepdims=True)
        return (top + np.log(total))[..., 0], parts / total

    def objective(self, x: Array, weights: Array, log_loss: Array | None = None) -> tuple[Array, Array]:
        """Values [S] and gradients [S, 5], for weights [S, n] or [n] and targets ln L [S, n] or [n]."""
        with np.errstate(over="ignore", invalid="ignore"):
            logs, shares = self.predicted(x)
            scaled = (logs - (self.log_loss if log_loss is None else log_loss)) / DELTA
            size = np.abs(scaled)
            values = (weights * np.where(size <= 1, 0.5 * scaled**2, size - 0.5)).sum(axis=-1)
            slopes = weights * np.clip(scaled, -1.0, 1.0) / DELTA
            by_term = slopes[..., None] * shares
            gradients = np.stack(
                [
                    by_term[..., 0].sum(axis=-1),
                    by_term[..., 1].sum(axis=-1),
                    by_term[..., 2].sum(axis=-1),
                    -(by_term[..., 0] * self._n).sum(axis=-1),
                    -(by_term[..., 1] * self._d).sum(axis=-1),
                ],
                axis=-1,
            )
        return np.where(np.isfinite(values), values, np.inf), gradients


def fit_law(points: Sequence[Point]) -> tuple[Law, float]:
    """The law that minimises the Huber loss over all starts, and that loss divided by DELTA²."""
    problems = Problems(points)
    grid = np.array(list(itertools.product(*STARTS.values())))
    starts, ones = problems.centered(grid), np.ones(len(points))
    # A short descent from all of them, and a long one from the best few
    near, values = minimise(lambda x, rows: problems.objective(x, ones), starts, iterations=30)
    best = np.argsort(np.where(np.isfinite(values), values, np.inf))[:SECOND_ROUND]
    x, values = minimise(lambda x, rows: problems.objective(x, ones), near[best])
    lowest = int(np.argmin(values))
    return law_of(problems.plain(x[lowest : lowest + 1])[0]), float(values[lowest])


SECOND_ROUND = 200


def fit_resampled(points: Sequence[Point], law: Law, weights: Array, log_loss: Array) -> list[Law]:
    """The law of each of the problems, with weights [R, n] and targets [R, n], from `law`."""
    problems = Problems(points)
    start = np.repeat(problems.centered(theta_of(law)[None]), len(weights), axis=0)

    def objective(x: Array, rows: NDArray[Any]) -> tuple[Array, Array]:
        return problems.objective(x, weights[rows], log_loss[rows])

    x, _ = minimise(objective, start)
    return [law_of(theta) for theta in problems.plain(x)]


def law_of(theta: Array) -> Law:
    """The law of (a, b, e, alpha, beta), of which the first three are logarithms."""
    a, b, e, alpha, beta = (float(value) for value in theta)
    with np.errstate(over="ignore"):
        return Law(float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), alpha, beta)


def theta_of(law: Law) -> Array:
    return np.array([math.log(law.A), math.log(law.B), math.log(law.E), law.alpha, law.beta])
