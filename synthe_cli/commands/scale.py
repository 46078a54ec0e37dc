"""`synthe scale`: scaling laws, from a grid of runs to a plan."""

from __future__ import annotations

import typer

from synthe_cli.commands import scale_fit, scale_grid, scale_plan
from synthe_cli.help import SETTINGS, Command, Group

ABOUT = "Fit scaling laws, and plan a training run."
VERBS = (
    (scale_grid.grid, scale_grid.EPILOG),
    (scale_fit.fit, scale_fit.EPILOG),
    (scale_plan.plan, scale_plan.PLAN_EPILOG),
    (scale_plan.plot, scale_plan.PLOT_EPILOG),
)

app = typer.Typer(cls=Group, help=ABOUT, **SETTINGS)
for verb, epilog in VERBS:
    app.command(cls=Command, epilog=epilog)(verb)


@app.callback(help=ABOUT)
def group() -> None: ...
