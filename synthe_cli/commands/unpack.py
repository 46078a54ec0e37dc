"""`synthe unpack`: a .synapse file into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import CheckpointArgument, JsonOption, find_checkpoint
from synthe_cli.renderer import choose_renderer
from synthe_core.events import results

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe unpack synthe-60m.synapse                           to synthe-60m/
synthe unpack synthe-60m.synapse -o runs/copy --only model   a checkpoint that you can train
synthe unpack team.synapse -o lora --only adapters         folders in PEFT's format
synthe hub pull ORG/NAME | synthe unpack - -o mine""",
)
def unpack(
    file: CheckpointArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="The folder. Default: the file's name.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="PART", help="Unpack only model, adapters or knowledge.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Unpack every member of a file into a folder, and print the folder's path.

    All members are checked before the first is written. You can use, verify and pack the folder again.
    """
    path = find_checkpoint(file)

    from synthe_core.packing.unpack import unpack

    with choose_renderer(as_json) as shown:
        for result in results(unpack(path, out, only), shown.show):
            shown.result(result)
