"""Bayesian linear regression, updated exactly with each observation."""

from __future__ import annotations

import numpy as np


class BayesianLinear:
    """y = w·x + noise, with w ~ N(mean, diag(deviation²)) at first.

    After any sequence of updates `mean` [D] and `covariance` [D, D], float64, are those of the posterior (Bishop 2006,
    3.3.1), computed by rank-one updates in D² operations each.
    """

    def __init__(self, mean: np.ndarray, deviation: np.ndarray, noise: float) -> None:
        self.mean, self.covariance = mean.astype(np.float64), np.diag(deviation.astype(np.float64) ** 2)
        self.noise, self.observations = noise, 0

    def predict(self, x: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation of w·x."""
        variance = float(x @ self.covariance @ x)
        return float(x @ self.mean), max(0.0, variance) ** 0.5

    def update(self, x: np.ndarray, y: float) -> None:
        """Takes in one observation."""
        direction = self.covariance @ x
        scale = self.noise**2 + float(x @ direction)
        self.mean += direction * ((y - float(x @ self.mean)) / scale)
        self.covariance -= np.outer(direction, direction / scale)
        self.observations += 1

    def fit(self, xs: np.ndarray, ys: np.ndarray) -> None:
        """Takes in many observations [N, D] and [N] at once: the posterior that `update` gives, faster."""
        if not len(xs):
            return
        spread = self.covariance @ xs.T
        gain = np.linalg.solve(xs @ spread + self.noise**2 * np.eye(len(xs)), spread.T)
        self.mean = self.mean + (ys - xs @ self.mean) @ gain
        self.covariance = self.covariance - spread @ gain
        self.covariance = (self.covariance + self.covariance.T) / 2
        self.observations += len(xs)
