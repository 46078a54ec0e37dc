"""The points of a scaling law: size, tokens and loss, of trained runs or of a table."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from synthe_core.errors import InputError, closest

FLOPS_PER_PARAMETER = 6.0
"""C = 6 N D: two FLOPs a parameter and token forward, four backward. Kaplan et al. 2020."""
COLUMNS = {
    "parameters": ("parameters", "params", "n", "size", "model_size"),
    "tokens": ("tokens", "d", "training_tokens"),
    "flops": ("flops", "flop", "c", "compute", "training_flop", "training_flops"),
    "loss": ("loss", "l", "validation_loss"),
    "learner": ("learner", "architecture", "model"),
}
"""Names that a column of a table may have, in any case, with spaces or underscores."""


class Point(NamedTuple):
    """One trained model: N parameters, D tokens, its loss in nats a token, C FLOPs, its learner, and its name."""

    parameters: float
    tokens: float
    loss: float
    flops: float
    learner: str = "model"
    name: str = ""


def read_table(path: Path) -> list[Point]:
    """The points of a CSV file with columns for two of size, tokens and FLOPs, and the loss; a learner's is optional.

    What is left out of the three follows from C = 6 N D. InputError for a column that is missing, or a value that is no
    number above 0, with its line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = _columns(path, reader.fieldnames or [])
            points = [_point(path, reader.line_num, row, columns) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV table: {str(error)[:100]}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if not points:
        raise InputError(f"{path} has no rows")
    return points


def _columns(path: Path, heads: Sequence[str]) -> dict[str, str]:
    """The head of each known column."""
    plain = {each.strip().lower().replace(" ", "_"): each for each in heads}
    columns = {key: plain[name] for key, names in COLUMNS.items() for name in names if name in plain}
    sizes = [key for key in ("parameters", "tokens", "flops") if key in columns]
    if "loss" not in columns or len(sizes) < 2:
        missing = "loss" if "loss" not in columns else "two of parameters, tokens and flops"
        near = closest("loss" if missing == "loss" else next(k for k in COLUMNS if k not in columns), plain)
        hint = f"it has {', '.join(heads) or 'none'}" + (f"; is '{plain[near]}' meant?" if near else "")
        raise InputError(f"{path} has no column of {missing}", hint)
    return columns


def _point(path: Path, line: int, row: Mapping[str, str | None], columns: Mapping[str, str]) -> Point:
    values: dict[str, float] = {}
    for key, head in columns.items():
        if key == "learner":
            continue
        text = (row[head] or "").strip()
        try:
            values[key] = float(text)
        except ValueError:
            values[key] = math.nan
        if not 0 < values[key] < math.inf:
            raise InputError(f"{path}:{line}: {head} is '{text[:40]}'", "expected a number above 0")
    size, tokens, flops = (values.get(key) for key in ("parameters", "tokens", "flops"))
    if size is None:
        assert tokens and flops
        size = flops / (FLOPS_PER_PARAMETER * tokens)
    if tokens is None:
        assert flops
        tokens = flops / (FLOPS_PER_PARAMETER * size)
    flops = flops or FLOPS_PER_PARAMETER * size * tokens
    learner = (row[columns["learner"]] or "").strip() if "learner" in columns else ""
    return Point(size, tokens, values["loss"], flops, learner or "model")


def by_learner(points: Iterable[Point]) -> dict[str, list[Point]]:
    """The points of each learner, in the order in which they first occur."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.learner, []).append(point)
    return groups


def without_highest(points: Sequence[Point], count: int) -> list[Point]:
    """The points without the `count` of highest loss. InputError if none are left."""
    if count >= len(points):
        raise InputError(f"--drop-highest {count} leaves none of {len(points)} points")
    highest = sorted(range(len(points)), key=lambda i: points[i].loss)[len(points) - count :] if count else []
    return [point for i, point in enumerate(points) if i not in set(highest)]
