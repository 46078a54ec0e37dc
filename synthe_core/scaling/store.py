"""Fits in a file, which `plan` and `plot` read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError
from synthe_core.scaling.fit import Fit
from synthe_core.scaling.law import Law
from synthe_core.scaling.points import Point
from synthe_core.storage.atomic import failure, write_file
from synthe_core.storage.json_reader import read_json

FORMAT = 1
MAX_BYTES, MAX_VALUES = 2**27, 2**23


def write_fits(path: Path, fits: Sequence[Fit]) -> None:
    """Writes fits with their points and resamples."""
    content = {"format": FORMAT, "fits": [_plain(each) for each in fits]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(content, ensure_ascii=False) + "\n")
    except OSError as error:
        raise failure(path, error) from error


def read_fits(path: Path) -> list[Fit]:
    """The fits that `write_fits` wrote. InputError if the file holds none."""
    if not path.is_file():
        raise InputError(f"no fit: {path}", "synthe scale fit RUNS... writes one")
    content = read_json(path, MAX_BYTES, MAX_VALUES)
    if content.get("format") != FORMAT:
        raise InputError(f"{path} is not a fit of this version", "synthe scale fit RUNS... writes one")
    try:
        return [_fit(each) for each in content["fits"]]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is damaged", "synthe scale fit RUNS... writes it again") from None


def _plain(each: Fit) -> dict[str, Any]:
    return {
        "learner": each.learner,
        "points": [list(point) for point in each.points],
        "law": None if each.law is None else list(astuple(each.law)),
        "samples": [[v if math.isfinite(v) else None for v in astuple(law)] for law in each.samples],
        "method": each.method,
        "per_parameter": each.per_parameter,
        "residual": each.residual,
        "reason": each.reason,
    }


def _fit(values: dict[str, Any]) -> Fit:
    return Fit(
        str(values["learner"]),
        [_point(*point) for point in values["points"]],
        None if values["law"] is None else Law(*map(float, values["law"])),
        [Law(*(math.nan if v is None else float(v) for v in law)) for law in values["samples"]],
        str(values["method"]),
        float(values["per_parameter"]),
        float(values["residual"]),
        str(values["reason"]),
    )


def _point(parameters: float, tokens: float, loss: float, flops: float, learner: str, name: str) -> Point:
    return Point(float(parameters), float(tokens), float(loss), float(flops), str(learner), str(name))
