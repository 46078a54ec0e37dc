"""`synthe export`: a checkpoint in the format of another framework."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import CheckpointArgument, JsonOption, find_checkpoint
from synthe_cli.renderer import choose_renderer
from synthe_core.events import results

ABOUT = "Export a checkpoint for another framework."

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
        typer.Option("--out", "-o", metavar="DIR", help="A new or empty folder. Default: exports/NAME."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model as a folder that transformers loads with the same logits, and print its path.

    Supported are blocks of attention and mlp, of mamba, and of mamba2; other recipes are refused. `synthe import hf`
    reads the folder back with the same results.
    """
    path = find_checkpoint(checkpoint)

    from synthe_core.interop.huggingface.exporter import export_hf

    with choose_renderer(as_json) as shown:
        for result in results(export_hf(path, out=out), shown.show):
            shown.result(result)
