"""`synthe train`: from a recipe to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import (
    DataOption,
    JsonOption,
    SetOption,
    complete_recipe,
    find_checkpoint,
    find_recipe,
    lora,
    overrides,
)
from synthe_cli.renderer import choose_renderer
from synthe_cli.signals import stop_on_signal
from synthe_core.errors import InputError
from synthe_core.events import results

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe train recipes/tiny.yaml                                   three minutes on this machine, no download
synthe train recipes/tiny.yaml --data my.txt --out runs/mine     on your own text
synthe train tiny --set train.lr=1e-3 --set train.budget=3m      any key that `synthe recipe show tiny` shows
synthe train tiny --set model.block.0.type=delta                 another learner in the first place of the block
synthe train runs/mine --resume                                  go on after Ctrl-C, a crash or a lost machine
synthe train --init runs/tiny --data letters.txt                 fine-tune what another run has learned
synthe train --init runs/tiny --data letters.txt --lora rank=16  the same as a small adapter; runs/tiny stays as it is
synthe train --init runs/tiny --data letters.txt --lora rank=8,targets=delta,mlp,alpha=16
synthe train tiny | synthe generate - --prompt "import "         and then write with it
synthe train recipes/60m.yaml --json | jq -c 'select(.event == "metric")'
""",
)
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE_OR_RUN]",
            help="A recipe file, a shipped recipe's name, or a run's folder; with --init, by default the checkpoint's.",
            autocompletion=complete_recipe,
        ),
    ] = None,
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
    adapter: Annotated[
        str | None,
        typer.Option(
            "--lora",
            metavar="KEY=VALUE,...",
            help="Train an adapter of the checkpoint instead of its weights: rank, alpha, dropout, rslora, targets.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the model of a recipe, and print the path of its run.

    Progress goes to stderr; metrics.jsonl in the run's folder holds every figure. Ctrl-C saves and stops; --resume
    goes on as if nothing had happened.
    """
    changes = overrides(data, [*([lora(adapter)] if adapter else []), *(assign or [])])
    path = find_recipe(recipe) if recipe else None
    first = find_checkpoint(init) if init else None

    from synthe_core.recipe.schema import Recipe
    from synthe_core.training import recipe_from_checkpoint
    from synthe_core.training import train as verb

    if path is not None:
        loaded = Recipe.load(path, changes)
    elif first is not None:
        loaded = recipe_from_checkpoint(first, changes)
    else:
        raise InputError(
            "which recipe is to be trained?", "name one, as recipes/tiny.yaml, or --init RUN to go on from"
        )
    folder = out or (path if resume and path and path.is_dir() else None)
    with choose_renderer(as_json) as shown, stop_on_signal() as stop:
        for result in results(verb(loaded, out=folder, resume=resume, init=first, stop=stop), shown.show):
            shown.result(result)
