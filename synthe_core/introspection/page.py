"""The report as one HTML page with its data, without network or other files."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from synthe_core.introspection.report import Report, plain
from synthe_core.introspection.series import Series

LEVELS = 255


def page(reports: Sequence[Report]) -> str:
    """The page of one model's report, or of two on the same text side by side."""
    template = files("synthe_core.introspection").joinpath("report.html").read_text(encoding="utf-8")
    packed = zlib.compress(json.dumps(data(reports), ensure_ascii=False, allow_nan=False).encode(), 9)
    title = " and ".join(report.name for report in reports)
    text = template.replace("{{title}}", escape(f"synthe introspect: {title}"))
    return text.replace("{{data}}", base64.b64encode(packed).decode())


def data(reports: Sequence[Report]) -> dict[str, Any]:
    """The data of the page: the text, and for each model its figures, quantised to 256 levels between two limits."""
    first = reports[0]
    return {"tokens": first.pieces, "ids": first.ids, "models": [_model(report) for report in reports]}


def _model(report: Report) -> dict[str, Any]:
    predictions = report.predictions
    words: dict[str, int] = {}
    following = [[words.setdefault(text, len(words)) for text in row] for row in report.likeliest]
    surprise = Series(
        "", "", "surprise", "confidence", "bits by which the token surprised", predictions.bits[None], None
    )
    doubt = Series("", "", "doubt", "confidence", "entropy of the next token, in bits", predictions.entropy[None], None)
    return {
        "name": report.name,
        "facts": {key: plain(value) for key, value in report.facts.items()},
        "bits": plain(report.bits),
        "words": list(words),
        "next": following,
        "chance": np.round(predictions.probability.astype(float), 4).tolist(),
        "rank": predictions.rank.tolist(),
        "strips": [_strip(each) for each in (surprise, doubt, *report.series)],
        "figures": [_figure(each._asdict()) for each in report.figures],
        "reads": [
            {
                "path": reads.path,
                "learner": reads.learner,
                "at": None if reads.at is None else reads.at.tolist(),
                "k": reads.sources.shape[1],
                "sources": _base64(reads.sources.astype("<i4")),
                "shares": _base64(np.round(reads.shares * LEVELS).clip(0, LEVELS).astype(np.uint8)),
                "error": plain(reads.error),
            }
            for reads in report.reads
        ],
    }


def _strip(series: Series) -> dict[str, Any]:
    rows = np.asarray(series.rows, dtype=np.float64)
    finite = rows[np.isfinite(rows)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if series.name == "advantage":  # zero is in the middle
        high = max(abs(low), abs(high))
        low = -high
    span = (high - low) or 1.0
    whole = series.whole and high <= LEVELS and low >= 0
    if whole:  # choices and counts are exact
        low, span = 0.0, float(LEVELS)
    levels = np.round((np.nan_to_num(rows, nan=low) - low) / span * LEVELS).clip(0, LEVELS).astype(np.uint8)
    return {
        "path": series.path,
        "learner": series.learner,
        "name": series.name,
        "group": series.group,
        "meaning": series.meaning,
        "at": None if series.at is None else series.at.tolist(),
        "rows": len(rows),
        "low": plain(low),
        "span": plain(span),
        "whole": whole,
        "blank": int(np.isnan(rows[0]).sum()),  # the first token has no surprise
        "levels": _base64(levels),
    }


def _figure(figure: dict[str, Any]) -> dict[str, Any]:
    values = np.asarray(figure["values"], dtype=np.float64)
    figure["values"] = plain(values.mean(-1)) if values.ndim > 1 else plain(figure["values"])
    return figure


def _base64(numbers: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode()
