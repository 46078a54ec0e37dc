"""`synthe export`: a checkpoint as another program reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import CheckpointArgument, JsonOption, find_checkpoint
from synthe_cli.renderer import choose_renderer
from synthe_core.events import results

ABOUT = "Write a checkpoint for another program."

app = typer.Typer(cls=Group, help=ABOUT, **SETTINGS)


@app.callback(help=ABOUT)
def export() -> None: ...


@app.command(
    cls=Command,
    short_help="A Hugging Face model folder: Llama, Mistral, Qwen2, Qwen3, Mamba, Mamba2.",
    epilog="""\
synthe export hf runs/transformer                         to exports/transformer
synthe export hf runs/mamba --out models/mamba-tiny
synthe train baselines/transformer-tiny | synthe export hf -""",
)
def hf(
    checkpoint: CheckpointArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The folder, new or empty; exports/NAME by default."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model as a folder that Hugging Face's transformers loads, with the same logits, and print its path.

    Blocks of attention and mlp, of mamba or of mamba2 have a published architecture; other recipes are refused. What
    comes back with `synthe import hf` computes the same.
    """
    path = find_checkpoint(checkpoint)

    from synthe_core.interop.huggingface import export_hf

    with choose_renderer(as_json) as shown:
        for result in results(export_hf(path, out=out), shown.show):
            shown.result(result)
