"""Options of the commands that train the runs of a sweep."""

from __future__ import annotations

from typing import Annotated

import typer

LAUNCHERS = ("local", "slurm", "ray")

RunsAtOnceOption = Annotated[
    int | None,
    typer.Option(
        "--jobs", "-j", metavar="N", min=1, help="Runs at a time. Default: one here, on a cluster all at once."
    ),
]
RunLauncherOption = Annotated[
    str,
    typer.Option(
        "--launcher",
        metavar="NAME",
        help="What starts the runs: local, slurm or ray.",
        autocompletion=lambda: list(LAUNCHERS),
    ),
]
SlurmOption = Annotated[
    str | None,
    typer.Option("--slurm", metavar="KEY=VALUE,...", help="Options of Slurm, as partition=gpu,time=600 (minutes)."),
]
