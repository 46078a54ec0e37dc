"""Options that the task benchmarks share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli.options import complete_recipe
from synthe_core.errors import InputError

LayerOption = Annotated[
    list[str] | None,
    typer.Option("--layer", metavar="NAME", help="A learner, or several comma-separated ones. Repeatable."),
]
RecipeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="Use the model of a recipe instead. Repeatable.",
        autocompletion=complete_recipe,
    ),
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="quick, standard or zoology. Default: standard with a GPU, else quick.")
]
SweepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="KEY=V1,V2",
        help="Try every value of lr, width, blocks, batch, epochs or weight_decay. Repeatable.",
    ),
]
SeedsOption = Annotated[
    int, typer.Option("--seeds", min=1, help="Number of seeds. Reports mean and standard deviation.")
]
LrOption = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
WidthOption = Annotated[int | None, typer.Option("--width", min=1, help="Width of the model made by --layer.")]
BlocksOption = Annotated[
    int | None, typer.Option("--blocks", min=1, max=1000, help="Blocks of the model made by --layer. Default: 2.")
]
EpochsOption = Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the training examples.")]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, help="Maximum number of steps.")]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="Concurrent trials. Default: 1 locally, unlimited on Slurm."),
]
LauncherOption = Annotated[str, typer.Option("--launcher", help="Where trials run: local, ray or slurm.")]
CsvOption = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write a table to this file.")]


def device_and_preset(device: str | None, preset: str | None, launcher: str) -> tuple[str, Any]:
    """The device, and the preset: quick without a GPU. On a cluster each trial chooses its own device."""
    from synthe_core.benchmarks.synthetic.plan import PROTOCOLS
    from synthe_core.errors import unknown
    from synthe_core.hardware.placement import choose_device
    from synthe_core.hardware.probe import probe

    place = choose_device(device or "auto", probe()).value
    size = preset or ("quick" if place == "cpu" else "standard")
    if size not in PROTOCOLS:
        raise unknown("preset", size, PROTOCOLS)
    return place if launcher == "local" else device or "auto", size


def settings(assign: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the learner and of the task in --set learner.KEY=V and task.KEY=V."""
    from synthe_core.benchmarks.synthetic.plan import parse_assignments

    chosen = parse_assignments(assign or [], "--set")
    if invalid := [key for key in chosen if key.partition(".")[0] not in ("learner", "task")]:
        raise InputError(f"--set {invalid[0]}: expected learner.KEY or task.KEY", "for example --set learner.heads=4")
    learner, task = (
        {key.partition(".")[2]: value for key, value in chosen.items() if key.partition(".")[0] == prefix}
        for prefix in ("learner", "task")
    )
    return learner, task


def check_writable(file: Path | None) -> None:
    """Raises InputError if a file that is written at the end cannot be."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise InputError(f"no such folder: '{file.parent}'", "create it first, or write the table elsewhere")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputError(f"{file} cannot be written")


def without_none(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {key: value for key, value in values.items() if value is not None}
