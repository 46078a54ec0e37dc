"""Figures of a load test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from synthe_core.benchmarks.load_test.request import RequestResult

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least the share `q` of all values do not exceed; NaN if there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else math.nan


def figures(answers: Sequence[RequestResult], seconds: float, turns: int) -> dict[str, Any]:
    """The figures of all results. Times are in seconds. Failed requests and their tokens are not included."""
    good = [answer for answer in answers if answer.error is None]
    prompt, cached, written = (sum(getattr(a, key) for a in good) for key in ("prompt", "cached", "written"))
    firsts = first_tokens(good)
    values = {
        "answered": len(good),
        "errors": dict(Counter(answer.error for answer in answers if answer.error is not None).most_common()),
        "turned_away": sum(answer.turned_away for answer in answers),
        "seconds": seconds,
        "requests_per_second": len(good) / seconds if seconds else math.nan,
        "output_tokens_per_second": written / seconds if seconds else math.nan,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "cached_share": cached / prompt if prompt else math.nan,
        "output_tokens": written,
        "first_token": _quantiles(firsts),
        "between_tokens": _quantiles(gaps(good)),
        "request": _quantiles([answer.seconds for answer in good]),
        "per_client": per_client(good),
    }
    if turns > 1:
        values["turns"] = [_turn(turn, good) for turn in range(turns)]
    return values


def first_tokens(answers: Sequence[RequestResult]) -> list[float]:
    return [answer.first - answer.sent for answer in answers if answer.first is not None]


def gaps(answers: Sequence[RequestResult]) -> list[float]:
    return [gap for answer in answers for gap in answer.gaps]


def per_client(answers: Sequence[RequestResult]) -> dict[str, float]:
    """Output tokens a second that each client got while it waited for answers: whether all were treated alike."""
    tokens: Counter[int] = Counter()
    waited: Counter[int] = Counter()
    for answer in answers:
        tokens[answer.client] += answer.written
        waited[answer.client] += answer.seconds  # type: ignore[assignment]
    rates = [tokens[client] / waited[client] for client in tokens if waited[client] > 0]
    return {
        "slowest": quantile(rates, 0.0),
        "median": quantile(rates, 0.5),
        "fastest": quantile(rates, 1.0),
        "jain": sum(rates) ** 2 / (len(rates) * sum(r * r for r in rates)) if any(rates) else math.nan,
    }


def _turn(turn: int, answers: Sequence[RequestResult]) -> dict[str, float]:
    """The mean of each conversation's request number `turn`, and its times."""
    of = [answer for answer in answers if answer.turn == turn]
    count = max(1, len(of))
    prompt, cached = sum(a.prompt for a in of) / count, sum(a.cached for a in of) / count
    first = quantile(first_tokens(of), 0.5)
    return {"turn": turn + 1, "answered": len(of), "prompt": prompt, "read": prompt - cached, "first_token": first}


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {name: quantile(values, q) for name, q in QUANTILES.items()}
