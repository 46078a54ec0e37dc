"""`synthe train`: from a recipe to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import (
    DataOption,
    JsonOption,
    LoraOption,
    SetOption,
    complete_objective,
    complete_recipe,
    complete_run,
    find_checkpoint,
    find_recipe,
    lora,
    overrides,
    shipped_recipes,
)
from synthe_cli.processes import LAUNCHERS, Launch, launch_processes, rank_0_reports, report_and_exit
from synthe_cli.renderer import SilentRenderer, choose_renderer
from synthe_cli.signals import stop_on_signal
from synthe_core.errors import InputError
from synthe_core.events import results

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe train recipes/tiny.yaml                                   three minutes on this machine, no download
synthe train recipes/tiny.yaml --data my.txt --out runs/mine     on your own text
synthe train tiny --set train.lr=1e-3 --set train.budget=3m      override any key of `synthe recipe show tiny`
synthe train tiny --set model.block.0.type=delta                 another learner in the first position of the block
synthe train runs/mine --resume                                  resume after Ctrl-C or a crash
synthe train --init runs/tiny --data letters.txt                 fine-tune another run
synthe train --init runs/tiny --data letters.txt --lora rank=16  train an adapter; runs/tiny is not changed
synthe train --init runs/tiny --data letters.txt --lora rank=8,targets=delta,mlp,alpha=16
synthe train --init models/smollm2 --data chats.jsonl --objective sft --lora rank=16
synthe train recipes/distill/hybrid.yaml --teacher models/smollm2  a Transformer's student, three stages
synthe train --init model.gguf --data letters.txt --lora rank=16,quantize=as_stored     the model stays quantised
synthe train --init models/smollm2 --document handbook.pdf --lora rank=32 --out runs/handbook
synthe train tiny | synthe generate - --prompt "import "         then generate text
synthe train recipes/tiny.yaml --processes 2                     two processes of this machine, the same numbers as one
torchrun --nproc-per-node 8 -m synthe_cli train recipes/60m.yaml --set runtime.mesh.shard=auto
synthe train recipes/60m.yaml --nodes 4 --gpus 8 --launcher slurm --slurm partition=gpu,time=600
synthe train recipes/60m.yaml --json | jq -c 'select(.event == "metric")'
""",
)
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE_OR_RUN]",
            help="A recipe file, a shipped recipe or a run folder. Default with --init: the checkpoint's recipe.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    data: DataOption = None,
    assign: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The run folder. Default: runs/NAME, numbered if it exists."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the run's newest checkpoint.")] = False,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="CHECKPOINT",
            help="Start from these weights: a path, or ORG/NAME of the hub. - reads a path from stdin.",
        ),
    ] = None,
    adapter: LoraOption = None,
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            metavar="NAME",
            help="What training minimises: language_modeling, sft, dpo, kto, orpo, distill, document or another.",
            autocompletion=complete_objective,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="The model that a student learns from (objective distill): any checkpoint, or ORG/NAME of the hub.",
            autocompletion=complete_run,
        ),
    ] = None,
    document: Annotated[
        Path | None,
        typer.Option(
            "--document",
            metavar="FILE",
            help="Put the knowledge of this text, HTML, PDF or Word file into the adapter.",
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes", "--gpus", metavar="N", min=1, help="Train by N processes of each machine, one a GPU."
        ),
    ] = 1,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="How many machines train together.")] = 1,
    launcher: Annotated[
        str,
        typer.Option(
            "--launcher",
            metavar="NAME",
            help="What starts the processes: local, torchrun (run the command on every machine) or slurm.",
            autocompletion=lambda: list(LAUNCHERS),
        ),
    ] = "local",
    rendezvous: Annotated[
        str | None,
        typer.Option("--rendezvous", metavar="HOST:PORT", help="Where machines meet, with --launcher torchrun."),
    ] = None,
    slurm: Annotated[
        str | None,
        typer.Option("--slurm", metavar="KEY=VALUE,...", help="Options of Slurm, as partition=gpu,time=600 (minutes)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the model of a recipe, and print the path of the run.

    Progress goes to stderr; metrics.jsonl in the run folder has every metric. Ctrl-C saves a checkpoint and stops, and
    --resume continues from it with identical results.
    """
    if processes > 1 or nodes > 1 or launcher != "local":
        launch_processes(Launch(nodes, processes, launcher, rendezvous, slurm), as_json)
        return
    objective = objective or ("distill" if teacher else None)
    given = [f"objective.type={objective}"] if objective else []
    given += [f"objective.teacher={teacher}"] if teacher else []
    if document is not None:
        given = ["objective.type=document", f"objective.document={document}"]
    changes = overrides(data, [*given, *([lora(adapter)] if adapter else []), *(assign or [])])
    path = _recipe_path(recipe) if recipe else None
    first = find_checkpoint(init) if init else None

    from synthe_core.recipe.schema import Recipe
    from synthe_core.storage.checkpoint import checkpoints
    from synthe_core.storage.run_folder import newest_run
    from synthe_core.training import recipe_from_checkpoint
    from synthe_core.training import train as verb
    from synthe_core.training.distributed.start import process_group, restarts

    if path is not None:
        loaded = Recipe.load(path, changes)
    elif first is not None:
        loaded = recipe_from_checkpoint(first, changes)
    else:
        raise InputError("no recipe given", "name one, as recipes/tiny.yaml, or start from a run with --init RUN")
    folder = out or (path if resume and path and path.is_dir() else None)
    if restarts():  # the processes have been started before, and go on with the run that they began
        folder = folder or newest_run(loaded.name)
        resume = folder is not None and folder.exists()
        first = None if folder is not None and checkpoints(folder) else first
    with rank_0_reports() as leads, process_group(loaded, abandon=report_and_exit) as ranks:
        renderer = choose_renderer(as_json) if leads else SilentRenderer()
        with renderer as shown, stop_on_signal(silent=not leads) as stop:
            steps = verb(loaded, out=folder, resume=resume, init=first, stop=stop, ranks=ranks)
            for result in results(steps, shown.show):
                shown.result(result)


def _recipe_path(text: str) -> Path:
    """The path of a recipe. The error for a model of the hub says how one is trained further."""
    from synthe_core.storage.hub.model_id import hub_id

    try:
        return find_recipe(text)
    except InputError as error:
        if hub_id(text) is None or text.partition("/")[0] in {name.partition("/")[0] for name in shipped_recipes()}:
            raise
        raise InputError(error.message, f"to fine-tune a model of the hub: synthe train --init {text}") from None
