"""`synthe scale fit`: the law of loss by size and tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.commands.scale_options import FIT, ResamplesOption
from synthe_cli.escape import json_text, printable
from synthe_cli.options import JsonOption
from synthe_core.errors import InputError

if TYPE_CHECKING:
    from synthe_core.scaling.fit import Fit, Interval
    from synthe_core.scaling.points import Point

EPILOG = """\
synthe scale fit runs/scale                      all runs of a sweep, a law for each learner
synthe scale fit runs/scale/*                    the same
synthe scale fit points.csv                      a table with columns for size, tokens (or FLOPs) and loss
synthe scale fit chinchilla.csv --drop-highest 5 --resamples 4000
synthe scale fit runs/scale --json | jq .constants
"""


def fit(
    sources: Annotated[
        list[Path], typer.Argument(metavar="RUNS...|TABLE.csv", help="Runs, folders of sweeps, or one CSV table.")
    ],
    drop_highest: Annotated[
        int, typer.Option("--drop-highest", metavar="N", min=0, help="Leave out the N points of highest loss.")
    ] = 0,
    resamples: ResamplesOption = 1000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the resamples.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where the fit is written, for plan and plot.")
    ] = FIT,
    as_json: JsonOption = False,
) -> None:
    """Fit how loss falls with size and tokens, for each learner.

    L(N, D) = E + A / N^alpha + B / D^beta, N parameters, D tokens, with 95 % intervals. The fit minimises the Huber
    loss of ln L, as in Chinchilla. Where intervals leave something open, it says so. IsoFLOP curves give the best size
    of each budget at which three sizes were trained.
    """
    from synthe_core.scaling.fit import compare, fit_all
    from synthe_core.scaling.points import without_highest
    from synthe_core.scaling.store import write_fits

    points = without_highest(_points(sources), drop_highest)
    fits = fit_all(points, resamples, seed)
    write_fits(out, fits)
    for each in fits:
        report = _values(each, resamples) if as_json else _text(each, resamples)
        print(json_text(report) if isinstance(report, dict) else printable(report))
    sentences = compare(fits)
    if as_json:
        print(json_text({"event": "result", "comparisons": sentences, "path": str(out)}))
    else:
        print("\n".join([*sentences, str(out)]))


def _points(sources: list[Path]) -> list[Point]:
    from synthe_core.scaling.points import read_table
    from synthe_core.scaling.runs import read_points, run_folders

    tables = [path for path in sources if path.suffix.lower() == ".csv"]
    if tables and len(sources) > 1:
        raise InputError("one CSV table is fitted alone", "put all points into one table")
    if tables:
        return read_table(tables[0])
    runs, unfinished = run_folders(sources)
    if unfinished:
        print(f"{unfinished} runs are not finished, and left out", file=sys.stderr)
    if not runs:
        raise InputError("no finished runs", "train some: synthe scale grid")
    return read_points(runs)


def _values(fitted: Fit, resamples: int) -> dict[str, Any]:
    """What a line of JSON says of a fit."""
    from synthe_core.scaling.fit import open_questions
    from synthe_core.scaling.isoflop import isoflop_curves, size_exponent

    curves = isoflop_curves(fitted, resamples)
    constants = {} if fitted.law is None else fitted.constants()
    return {
        "event": "fit",
        "learner": fitted.learner,
        "points": len(fitted.points),
        "constants": {name: _plain(each) for name, each in constants.items()},
        "flops_per_parameter": fitted.per_parameter,
        "residual": fitted.residual,
        "method": fitted.method,
        "isoflop": [{"flops": curve.flops, "size": _plain(curve.best)} for curve in curves],
        "isoflop_exponent": size_exponent(curves),
        "open": open_questions(fitted),
    }


def _text(fitted: Fit, resamples: int) -> str:
    from synthe_core.scaling.fit import open_questions
    from synthe_core.scaling.isoflop import describe, isoflop_curves

    lines = [f"{fitted.learner}: {len(fitted.points)} points"]
    if fitted.law is not None:
        rows = [
            [name, f"{each.value:.4g}", f"[{each.low:.4g}, {each.high:.4g}]"]
            for name, each in fitted.constants().items()
        ]
        lines.append(figures.table(["", "fit", "95 % interval"], rows))
        lines.append(
            f"residual {fitted.residual:.2%} of the loss; C = {fitted.per_parameter:.3g} N D; {fitted.method}, "
            f"{len(fitted.samples)} times"
        )
    lines += open_questions(fitted)
    return "\n".join([*lines, *describe(isoflop_curves(fitted, resamples)), ""])


def _plain(interval: Interval) -> dict[str, float | None]:
    values = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {key: value if value == value else None for key, value in values.items()}
