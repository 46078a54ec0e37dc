"""`synthe import`: a model that another program has written becomes a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_core.events import results

app = typer.Typer(cls=Group, help="Make a checkpoint of a model that another program has written.", **SETTINGS)


@app.callback()
def _group() -> None:
    """Make a checkpoint of a model that another program has written."""


@app.command(
    cls=Command,
    short_help="A Hugging Face model folder: Llama, Mistral, Qwen2, Qwen3, Mamba, Mamba2.",
    epilog="""\
synthe import hf models/Qwen3-0.6B                               to runs/Qwen3-0.6B
synthe import hf models/mamba-130m-hf --out checkpoints/mamba
synthe import hf models/Llama-3.2-1B | synthe generate - --prompt "The sea "
synthe train runs/Qwen3-0.6B --init runs/Qwen3-0.6B --data my.txt --out runs/mine     fine-tune it""",
)
def hf(
    folder: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="A folder with config.json and safetensors files.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="The checkpoint's folder; by default runs/NAME, or the next that is free.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Its name; by default that of MODEL_DIR.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Import a model that Hugging Face's transformers has saved, with the same logits, and print the checkpoint's path.

    Works offline, without transformers. Architectures, options and tensors that cannot be expressed are refused, by
    name; so are pickle files (.bin). Weights become float32.
    """
    from synthe_core.interop.huggingface import import_hf

    with choose_renderer(as_json) as shown:
        for result in results(import_hf(folder.expanduser(), out=out, name=name), shown.show):
            shown.result(result)
