"""What the commands of `synthe scale` share: numbers, and the fit's file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from synthe_core.errors import InputError
from synthe_core.units import parse_count

FIT = Path("runs/scale-fit.json")

FitOption = Annotated[Path, typer.Option("--fit", metavar="FILE", help="What `synthe scale fit` has written.")]
ResamplesOption = Annotated[
    int, typer.Option("--resamples", metavar="N", min=100, help="Bootstrap resamples for the intervals.")
]


def count(text: str, option: str) -> float:
    """`1e21`, `200G` or `1M`, above 0. InputError otherwise."""
    try:
        value = float(text)
    except ValueError:
        try:
            value = float(parse_count(text))
        except ValueError as error:
            raise InputError(f"{option}: {error}", f"for example {option} 1M or 1e6") from None
    if not 0 < value < math.inf:
        raise InputError(f"{option} {text}: expected a number above 0")
    return value


def counts(text: str, option: str) -> list[float]:
    """`1M,2M` as numbers above 0."""
    values = [count(each.strip(), option) for each in text.split(",")] if text else []
    if len(set(values)) < len(values):
        raise InputError(f"{option} {text}: a number is given twice")
    return values
