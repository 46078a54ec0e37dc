"""`synthe import`: a model of another framework as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.hub_models import find_model
from synthe_cli.options import JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_core.events import results

app = typer.Typer(cls=Group, help="Import a model of another framework as a checkpoint.", **SETTINGS)


@app.callback()
def _group() -> None:
    """Import a model of another framework as a checkpoint."""


@app.command(
    cls=Command,
    short_help="A Hugging Face model folder: Llama, Mistral, Qwen2, Qwen3, Mamba, Mamba2.",
    epilog="""\
synthe import hf models/Qwen3-0.6B                               to runs/Qwen3-0.6B
synthe import hf Qwen/Qwen3-0.6B                                 a model of the Hugging Face hub
synthe import hf models/mamba-130m-hf --out checkpoints/mamba
synthe import hf models/Llama-3.2-1B | synthe generate - --prompt "The sea "
synthe train runs/Qwen3-0.6B --init runs/Qwen3-0.6B --data my.txt --out runs/mine     fine-tune it""",
)
def hf(
    folder: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Folder with config.json and safetensors files, or ORG/NAME of the hub."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="The checkpoint folder. Default: runs/NAME, numbered if it exists.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the model. Default: the name of MODEL.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Import a model saved by transformers, with the same logits, and print the checkpoint's path.

    Works offline and without transformers. Unsupported architectures, options and tensors are refused by name; so are
    pickle files (.bin). Weights are converted to float32.
    """
    from synthe_core.interop.importer import import_hf

    path = find_model(folder)
    with choose_renderer(as_json) as shown:
        for result in results(import_hf(path, out=out, name=name), shown.show):
            shown.result(result)


@app.command(
    cls=Command,
    short_help="A GGUF file: Llama, Mistral, Qwen2, Qwen3, Mamba, Mamba2.",
    epilog="""\
synthe import gguf SmolLM2-135M-Instruct.Q4_1.gguf               to runs/SmolLM2-135M-Instruct.Q4_1
synthe import gguf qwen3-0.6b-q4_k_m.gguf --out runs/qwen
synthe generate qwen3-0.6b-q4_k_m.gguf --prompt "The sea "       every command also takes the file itself""",
)
def gguf(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The GGUF file, or ORG/NAME:QUANT or ORG/NAME/FILE of the hub.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="The checkpoint folder. Default: runs/NAME, numbered if it exists."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the model. Default: the name of FILE.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Import a GGUF file with its tokenizer and chat template, and print the checkpoint's path.

    Quantised weights are dequantised to float32. Unsupported architectures, types and tensors are refused by name.
    """
    from synthe_core.interop.importer import import_gguf

    path = find_model(file)
    with choose_renderer(as_json) as shown:
        for result in results(import_gguf(path, out=out, name=name), shown.show):
            shown.result(result)
