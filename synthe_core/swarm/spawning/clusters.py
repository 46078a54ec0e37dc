"""Clusters of directions by their cosine: DP-means (Kulis & Jordan 2012) on the unit sphere."""

from __future__ import annotations

import numpy as np

ROUNDS = 25
"""Passes over the points, at most."""


def cluster(points: np.ndarray, similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """Points float [N, D] of length 1 as (labels int [N], centres float [K, D] of length 1).

    Every point belongs to the centre with the largest cosine; one whose largest is below `similarity` begins a cluster
    of its own. The number of clusters follows from that. The same points in the same order give the same clusters.
    """
    if not len(points):
        return np.zeros(0, np.int64), np.zeros((0, points.shape[1] if points.ndim == 2 else 0))
    labels, centres = np.full(len(points), -1), points[:1]
    for _ in range(ROUNDS):
        before, made = labels.copy(), [*centres]
        for number, point in enumerate(points):
            cosines = np.stack(made) @ point
            labels[number] = int(cosines.argmax())
            if cosines[labels[number]] < similarity:
                labels[number] = len(made)
                made.append(point)
        used, labels = np.unique(labels, return_inverse=True)
        centres = np.stack([_unit(points[labels == number].mean(0)) for number in range(len(used))])
        if (labels == before).all():
            break
    return labels, centres


def _unit(vector: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-9)
    return unit
