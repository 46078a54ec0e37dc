"""`synthe scale plan` and `synthe scale plot`: what a fit says of a budget, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.commands.scale_options import FIT, FitOption, count
from synthe_cli.escape import json_text, printable
from synthe_cli.options import JsonOption
from synthe_core.errors import InputError
from synthe_core.storage.atomic import write_file

if TYPE_CHECKING:
    from synthe_core.scaling.plan import Plan

PLAN_EPILOG = """\
synthe scale plan --flops 1e21                     size, tokens and loss for each learner of the last fit
synthe scale plan --flops 1e21 --learner delta
synthe scale plan --flops 1e21 --fit runs/other-fit.json --json
"""
PLOT_EPILOG = """\
synthe scale plot                                  in the terminal
synthe scale plot --learner delta --out delta.svg
synthe scale plot --out scaling.png                needs matplotlib
"""
LearnerOption = Annotated[
    str | None, typer.Option("--learner", metavar="NAME", help="Of this learner only. Default: all of the fit.")
]


def plan(
    flops: Annotated[str, typer.Option("--flops", metavar="COUNT", help="The budget of training, as 1e21.")],
    learner: LearnerOption = None,
    fit: FitOption = FIT,
    as_json: JsonOption = False,
) -> None:
    """Give the best size and tokens for a budget.

    And the loss to expect, with 95 % intervals, from what `synthe scale fit` has written.
    """
    budget = count(flops, "--flops")

    from synthe_core.scaling.plan import choose
    from synthe_core.scaling.plan import plan as verb
    from synthe_core.scaling.store import read_fits

    for each in choose(read_fits(fit), learner):
        if each.law is None:
            report: dict[str, Any] = {"learner": each.learner, "warnings": [f"cannot tell: {each.reason}"]}
            text = f"{each.learner}: cannot tell: {each.reason}"
        else:
            made = verb(each, budget)
            report, text = _values(made), _text(made, each.per_parameter)
        print(json_text({"event": "plan", **report}) if as_json else printable(text))


def _values(made: Plan) -> dict[str, Any]:
    intervals = {"parameters": made.parameters, "tokens": made.tokens, "loss": made.loss}
    return {
        "learner": made.learner,
        "flops": made.flops,
        **{
            key: {name: v if v == v else None for name, v in (("value", i.value), ("low", i.low), ("high", i.high))}
            for key, i in intervals.items()
        },
        "times_largest_run": made.beyond,
        "warnings": made.warnings,
    }


def _text(made: Plan, per_parameter: float) -> str:
    from synthe_core.scaling.isoflop import format_interval

    loss = made.loss
    bounds = f" [{loss.low:.3f}, {loss.high:.3f}]" if loss.known else ", without an interval"
    rows = [
        ["parameters", format_interval(made.parameters)],
        ["tokens", format_interval(made.tokens)],
        ["loss", f"{loss.value:.3f}{bounds}"],
    ]
    heads = [made.learner, f"at {made.flops:.3g} FLOPs, C = {per_parameter:.3g} N D"]
    return "\n".join([figures.table(heads, rows, left=2), *(f"warning: {each}" for each in made.warnings)])


def plot(
    learner: LearnerOption = None,
    fit: FitOption = FIT,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write an .svg or a .png. Default: draw in the terminal."),
    ] = None,
) -> None:
    """Draw a fit: an SVG, a PNG, or in the terminal.

    The least loss for a budget, loss by tokens for every size, and IsoFLOP curves.
    """
    suffix = None if out is None else out.suffix.lower()
    if suffix not in (None, ".svg", ".png"):
        raise InputError(f"--out {out}: expected an .svg or a .png")
    if suffix == ".png":
        from synthe_core.charts.png import check_png

        check_png()

    from synthe_core.charts.png import png
    from synthe_core.charts.svg import svg
    from synthe_core.charts.terminal import text
    from synthe_core.scaling.figures import charts
    from synthe_core.scaling.store import read_fits

    fits = read_fits(fit)
    if learner is not None:
        from synthe_core.scaling.plan import choose

        fits = choose(fits, learner)
    drawn = charts(fits)
    if out is None:
        print(printable("\n\n".join(text(chart) for chart in drawn)))
        return
    write_file(out, png(drawn) if suffix == ".png" else svg(drawn))
    print(out)
