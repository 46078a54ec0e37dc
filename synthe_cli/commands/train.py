"""`synthe train`: from a recipe to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthe_cli import console
from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import (
    DataOption,
    JsonOption,
    SetOption,
    complete_recipe,
    find_checkpoint,
    find_recipe,
    overrides,
)
from synthe_cli.signals import stop_on_signal
from synthe_core.events import Result

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe train recipes/tiny.yaml                                   three minutes on this machine, no download
synthe train recipes/tiny.yaml --data my.txt --out runs/mine     on your own text
synthe train tiny --set train.lr=1e-3 --set train.budget=3m      any key that `synthe recipe show tiny` shows
synthe train tiny --set model.block.0.type=delta                 another learner in the first place of the block
synthe train runs/mine --resume                                  go on after Ctrl-C, a crash or a lost machine
synthe train tiny --init runs/tiny --data letters.txt            fine-tune what another run has learned
synthe train tiny | synthe generate - --prompt "import "         and then write with it
synthe train recipes/60m.yaml --json | jq -c 'select(.event == "metric")'
""",
)
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_RUN",
            help="A recipe file, a shipped recipe's name, or a run's folder.",
            autocompletion=complete_recipe,
        ),
    ],
    data: DataOption = None,
    assign: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="The run's folder; by default runs/NAME, or the next that is free."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")] = False,
    init: Annotated[
        str | None,
        typer.Option("--init", metavar="CHECKPOINT", help="Begin with this checkpoint's weights; - reads its path."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the model of a recipe, and print the path of its run.

    Progress goes to stderr; metrics.jsonl in the run's folder holds every figure. Ctrl-C saves and stops; --resume
    goes on as if nothing had happened.
    """
    path = find_recipe(recipe)

    from synthe_core.recipe import Recipe
    from synthe_core.training import train as verb

    loaded = Recipe.load(path, overrides(data, assign))
    folder = out or (path if resume and path.is_dir() else None)
    first = find_checkpoint(init) if init else None
    with console.choose(as_json) as shown, stop_on_signal() as stop:
        for event in verb(loaded, out=folder, resume=resume, init=first, stop=stop):
            if isinstance(event, Result):
                shown.result(event)
            else:
                shown.show(event)
