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
    short_help="A folder that transformers loads.",
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

    Blocks of attention and mlp, of mamba, and of mamba2 become Llama, Mistral, Qwen2, Qwen3, Mamba or Mamba2, which
    need nothing else. Other recipes become SyntheForCausalLM, which transformers loads where synthe is installed. Every
    command reads the folder back with the same results.
    """
    path = find_checkpoint(checkpoint)

    from synthe_core.interop.huggingface.exporter import export_hf

    with choose_renderer(as_json) as shown:
        for result in results(export_hf(path, out=out), shown.show):
            shown.result(result)


@app.command(
    cls=Command,
    short_help="A GGUF file for llama.cpp: Llama, Qwen, Gemma, Granite, Mamba, LFM2 and more.",
    epilog="""\
synthe export gguf runs/transformer                              to exports/transformer-f16.gguf
synthe export gguf runs/transformer --quantize q4_k_m --out small.gguf
synthe export gguf models/Qwen3-0.6B --quantize q8_0             a folder of transformers, without importing it""",
)
def gguf(
    checkpoint: CheckpointArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The file. Default: exports/NAME-TYPE.gguf.")
    ] = None,
    quantize: Annotated[
        str,
        typer.Option("--quantize", "-q", metavar="TYPE", help="Type of matrices: f32, f16, bf16, q8_0, q4_0, q4_k_m."),
    ] = "f16",
    as_json: JsonOption = False,
) -> None:
    """Write a model as one GGUF file with its tokenizer and chat template, and print its path.

    Supported is every model that a GGUF architecture of the import computes, with the options of that architecture.
    Vectors stay float32. A matrix whose rows no block of the type divides is written as q8_0 or f16.
    """
    path = find_checkpoint(checkpoint)

    from synthe_core.interop.gguf.exporter import export_gguf

    with choose_renderer(as_json) as shown:
        for result in results(export_gguf(path, out=out, quantize=quantize), shown.show):
            shown.result(result)
