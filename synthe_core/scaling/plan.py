"""The size and the tokens for a budget, by a fitted law."""

from __future__ import annotations

from dataclasses import dataclass

from synthe_core.errors import InputError, unknown
from synthe_core.scaling.fit import Fit, Interval

FAR = 10.0  # factor beyond the most expensive run from which a plan is an extrapolation
UNDECIDED = 10.0  # factor between the bounds of a size from which it is not decided


@dataclass(frozen=True)
class Plan:
    """What a budget of C FLOPs buys at best: size, tokens and loss with intervals.

    beyond:   C divided by that of the most expensive run of the fit.
    warnings: what the plan does not know.
    """

    learner: str
    flops: float
    parameters: Interval
    tokens: Interval
    loss: Interval
    beyond: float
    warnings: list[str]


def choose(fits: list[Fit], learner: str | None) -> list[Fit]:
    """The fit of a learner, of all without a name. InputError if none of them has a law."""
    names = [each.learner for each in fits]
    if learner is not None and learner not in names:
        raise unknown("learner of the fit", learner, names)
    chosen = [each for each in fits if learner in (None, each.learner)]
    if all(each.law is None for each in chosen):
        raise InputError(f"{chosen[0].learner}: cannot tell: {chosen[0].reason}", "train more runs: synthe scale grid")
    return chosen


def plan(fitted: Fit, flops: float) -> Plan:
    """The plan for a budget. The budget of FLOPs is k N D, with the fit's k."""
    assert fitted.law is not None
    k = fitted.per_parameter
    best = [law.optimum(flops, k) for law in (fitted.law, *fitted.samples)]
    size, tokens, loss = (Interval.of(column[0], column[1:]) for column in zip(*best, strict=True))
    beyond = flops / fitted.largest
    warnings = []
    if beyond > FAR:
        warnings.append(f"an extrapolation: {beyond:.2g} times the FLOPs of the most expensive run of the fit")
    if not size.known:
        warnings.append("cannot tell the size: the fit does not show that loss falls with both size and tokens")
    elif size.high > UNDECIDED * size.low:
        warnings.append(f"cannot tell the size: its interval spans a factor of {size.high / size.low:.2g}")
    return Plan(fitted.learner, flops, size, tokens, loss, beyond, warnings)
