"""The scaling law of each learner with bootstrap intervals, and what they leave open."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field

import numpy as np

from synthe_core.errors import InputError
from synthe_core.scaling.law import PARAMETERS, Law, fit_law, fit_resampled
from synthe_core.scaling.minimise import Array
from synthe_core.scaling.points import Point, by_learner

LEVEL = 0.95
LEAST_POINTS, LEAST_DISTINCT = 6, 3
SAME = 1.05  # sizes and token counts closer than this factor count as one
MANY = 30  # points from which cases are drawn; of fewer a draw may leave no law
SIZES = 33  # between the smallest and the largest, at which a budget is spent
WIDE_EXPONENT, WIDE_SHARE, NOTHING = 0.2, 0.25, 0.01
MAX_UNDEFINED = 0.025  # share of resamples without a value


@dataclass(frozen=True)
class Interval:
    """A value, and the bounds of its 95 % interval; NaN bounds where too many resamples have none."""

    value: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return not (value < self.low or value > self.high)

    @classmethod
    def of(cls, value: float, samples: Sequence[float]) -> Interval:
        numbers = np.asarray(samples, dtype=float)
        finite = numbers[np.isfinite(numbers)]
        if len(finite) < (1 - MAX_UNDEFINED) * len(numbers) or not len(finite):
            return cls(value, float("nan"), float("nan"))
        low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(value, float(low), float(high))

    @property
    def known(self) -> bool:
        return bool(np.isfinite([self.value, self.low, self.high]).all())


@dataclass(frozen=True)
class Fit:
    """The law of a learner. law: None where the points are too few, for the `reason`.

    samples:       laws of resampled points. method: how they were resampled.
    per_parameter: k of C = k N D, the median over the points.
    residual:      root mean square of ln L - ln L(N, D).
    """

    learner: str
    points: list[Point]
    law: Law | None
    samples: list[Law] = field(default_factory=list)
    method: str = ""
    per_parameter: float = 6.0
    residual: float = 0.0
    reason: str = ""

    def interval(self, of: Callable[[Law], float]) -> Interval:
        """A quantity of the law, with its interval."""
        assert self.law is not None, self.reason
        return Interval.of(of(self.law), [of(each) for each in self.samples])

    def constants(self) -> dict[str, Interval]:
        """E, A, B, alpha, beta, and the exponent a of N_opt ∝ C^a."""
        values = {name: self.interval(lambda law, name=name: float(getattr(law, name))) for name in PARAMETERS}  # type: ignore[misc]
        return values | {"a": self.interval(lambda law: law.size_exponent)}

    def best_loss(self, flops: float) -> tuple[Interval, Array]:
        """The least loss for a budget of any size between the smallest and the largest that was trained; and the values
        of the law and of all resamples, NaN for those whose constants ran away."""
        sizes = [point.parameters for point in self.points]
        grid = np.geomspace(min(sizes), max(sizes), SIZES)
        constants = np.array([astuple(law) for law in (self.law, *self.samples) if law is not None])
        e, a, b, alpha, beta = (column[:, None] for column in constants.T)
        with np.errstate(over="ignore", invalid="ignore"):
            losses = e + a * grid**-alpha + b * (flops / (self.per_parameter * grid)) ** -beta
        best = losses.min(axis=1)
        return Interval.of(float(best[0]), best[1:].tolist()), best

    @property
    def largest(self) -> float:
        """FLOPs of the most expensive point."""
        return max(point.flops for point in self.points)


def fit_all(points: Sequence[Point], resamples: int = 1000, seed: int = 0) -> list[Fit]:
    """The fit of each learner. InputError if there are no points."""
    if not points:
        raise InputError("no points to fit", "name finished runs, or a CSV table")
    return [fit(name, group, resamples, seed) for name, group in by_learner(points).items()]


def fit(learner: str, points: Sequence[Point], resamples: int = 1000, seed: int = 0) -> Fit:
    """The law through points of one learner, and of `resamples` bootstrap resamples of them.

    With 30 points or more, points are drawn with replacement. A smaller, designed grid keeps its sizes and tokens, and
    residuals of ln L are drawn instead, enlarged by sqrt(n / (n - 5)) for the degrees of freedom that the fit takes
    (Efron and Tibshirani 1993, 9.4).
    """
    points = list(points)
    if reason := too_few(points):
        return Fit(learner, points, None, reason=reason)
    law, _ = fit_law(points)
    logs = np.log([point.loss for point in points])
    predicted = np.log([law.loss(point.parameters, point.tokens) for point in points])
    residuals = logs - predicted
    weights, targets, method = _resampled(predicted, residuals, logs, resamples, np.random.default_rng(seed))
    per_parameter = float(np.median([point.flops / (point.parameters * point.tokens) for point in points]))
    samples = fit_resampled(points, law, weights, targets)
    return Fit(learner, points, law, samples, method, per_parameter, float(np.sqrt(np.mean(residuals**2))))


def _resampled(
    predicted: Array, residuals: Array, logs: Array, resamples: int, random: np.random.Generator
) -> tuple[Array, Array, str]:
    """Weights [R, n], targets ln L [R, n], and the method's name."""
    count = len(logs)
    if count >= MANY:
        weights = random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
        return weights, np.broadcast_to(logs, weights.shape), "points drawn with replacement"
    scale = np.sqrt(count / (count - len(PARAMETERS)))
    drawn = scale * (residuals - residuals.mean())[random.integers(count, size=(resamples, count))]
    return np.ones_like(drawn), predicted + drawn, "residuals drawn with replacement"


def too_few(points: Sequence[Point]) -> str:
    """Why points are too few for a law of five constants; empty if they are not."""
    sizes, tokens = (_distinct([getattr(each, key) for each in points]) for key in ("parameters", "tokens"))
    if len(points) >= LEAST_POINTS and min(sizes, tokens) >= LEAST_DISTINCT:
        return ""
    return (
        f"{len(points)} points of {sizes} sizes and {tokens} token counts; a fit needs at least {LEAST_POINTS} points "
        f"of {LEAST_DISTINCT} sizes and {LEAST_DISTINCT} token counts"
    )


def _distinct(values: Sequence[float]) -> int:
    ordered = sorted(values)
    return 1 + sum(after > SAME * before for before, after in itertools.pairwise(ordered)) if ordered else 0


def open_questions(fitted: Fit) -> list[str]:
    """What the intervals of a fit do not decide, a sentence each."""
    if fitted.law is None:
        return [f"cannot tell: {fitted.reason}"]
    constants = fitted.constants()
    questions = []
    for key, what in (("alpha", "size"), ("beta", "tokens")):
        if not constants[key].known or constants[key].low <= 0:
            questions.append(f"cannot tell whether loss falls with {what}: the interval of {key} reaches 0")
    lowest = min(point.loss for point in fitted.points)
    entropy, exponent = constants["E"], constants["a"]
    if entropy.value < NOTHING * lowest:
        questions.append("cannot tell the irreducible loss E: the fit has none, the losses are too far above it")
    elif not entropy.known or entropy.high - entropy.low > WIDE_SHARE * lowest:
        questions.append(f"cannot tell the irreducible loss E: {_bounds(entropy)}")
    if not exponent.known or exponent.high - exponent.low > WIDE_EXPONENT:
        questions.append(f"cannot tell how a budget divides into size and tokens: N ∝ C^a, a {_bounds(exponent)}")
    return questions


def compare(fits: Sequence[Fit]) -> list[str]:
    """For each pair of learners which has the lower loss at the largest budget that both reached, if that is certain.

    Sizes are those between the smallest and the largest that were trained. The interval is that of the difference, over
    pairs of resamples.
    """
    sentences = []
    for one, two in itertools.combinations([each for each in fits if each.law is not None], 2):
        flops = min(one.largest, two.largest)
        difference = loss_difference(one, two, flops)
        names = f"{one.learner} and {two.learner} at {flops:.1e} FLOPs"
        if not difference.known or 0.0 in difference:
            sentences.append(f"{names}: cannot tell which is lower, the difference is {_bounds(difference, '+.3f')}")
        else:
            lower = one.learner if difference.value < 0 else two.learner
            sentences.append(f"{names}: {lower} is lower, the difference is {_bounds(difference, '+.3f')} nats")
    return sentences


def loss_difference(one: Fit, two: Fit, flops: float) -> Interval:
    """The loss of `one` at its best trained size for a budget, less that of `two`."""
    (_, first), (_, second) = one.best_loss(flops), two.best_loss(flops)
    many = min(len(first), len(second))
    differences = (first[:many] - second[:many]).tolist()
    return Interval.of(differences[0], differences[1:])


def _bounds(interval: Interval, form: str = ".3g") -> str:
    if not interval.known:
        return f"{interval.value:{form}}, without an interval"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
