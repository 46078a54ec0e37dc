"""`synthe pull`: a model of the Hugging Face hub into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from synthe_cli.help import SETTINGS, Command
from synthe_cli.hub_models import complete_hub
from synthe_cli.options import JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_core.events import results
from synthe_core.units import format_size

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe pull Qwen/Qwen3-0.6B                        the newest commit of its branch main
synthe pull Qwen/Qwen3-0.6B@v1.0                   a branch, tag or commit
synthe pull ORG/NAME-GGUF:Q4_K_M                   the GGUF file of a type
synthe pull ORG/NAME-GGUF/small.Q8_0.gguf          one file: GGUF or .synapse
synthe generate "$(synthe pull ORG/NAME)" -p "The sea "
synthe generate ORG/NAME -p "The sea "             the same: every command takes the id, too""",
)
def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="ORG/NAME, with :QUANT, /FILE and @REVISION as needed.", autocompletion=complete_hub
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Download a model of the Hugging Face hub, or the newest version of it, and print its path.

    It goes to the cache of huggingface_hub (HF_HOME), which other tools share. An interrupted download resumes. Only
    config, tokenizer and safetensors are downloaded, or one GGUF or .synapse file: never pickles, never code.
    """
    from synthe_core.interop.hub import fetch_model

    with choose_renderer(as_json) as shown:
        for result in results(fetch_model(model, update=True), shown.show):
            if as_json:
                shown.result(result)
            else:
                size = {"size": format_size(int(str(result.values["bytes"])))}
                shown.result(type(result)({"commit": str(result.values["commit"])[:12], **size}, result.path))
