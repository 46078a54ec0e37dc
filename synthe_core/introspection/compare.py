"""Comparing two models on one text: surprise by token, and figures of the same learners."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from synthe_core.errors import InputError
from synthe_core.introspection.report import Report
from synthe_core.introspection.series import Series


class Difference(NamedTuple):
    """A figure of both models: the mean of each, and the root mean square of their difference by token."""

    path: str
    learner: str
    name: str
    first: float
    second: float
    rms: float


def align_reports(first: Report, second: Report) -> tuple[Report, Report]:
    """Both reports, the second with a series of its advantage: the bits by which each token surprised it less.

    InputError if the models tokenize the text differently.
    """
    if first.ids != second.ids:
        raise InputError(
            f"{first.name} and {second.name} tokenize the text differently",
            "models are compared token by token: use ones with the same tokenizer",
        )
    gain = (first.predictions.bits - second.predictions.bits)[None]
    meaning = f"bits by which the token surprised {second.name} less than {first.name}"
    return first, replace(
        second, series=[Series("", "", "advantage", "confidence", meaning, gain, None), *second.series]
    )


def differences(first: Report, second: Report) -> list[Difference]:
    """Every figure of the same learner at the same path, over the tokens where both have it."""
    others = {(each.path, each.learner, each.name): each for each in second.series}
    result = []
    for each in first.series:
        other = others.get((each.path, each.learner, each.name))
        if other is None or each.whole or not each.path:
            continue
        one, two = _by_token(each, len(first.ids)), _by_token(other, len(first.ids))
        both = np.isfinite(one) & np.isfinite(two)
        if both.any():
            rms = float(np.sqrt(np.square(one[both] - two[both]).mean()))
            means = float(one[both].mean()), float(two[both].mean())
            result.append(Difference(each.path, each.learner, each.name, *means, rms))
    return result


def _by_token(series: Series, tokens: int) -> np.ndarray:
    """The mean over rows at every token, nan without one."""
    out = np.full(tokens, np.nan)
    out[slice(None) if series.at is None else series.at] = series.rows.mean(0)
    return out
