"""`synthe unpack`: the members of a .synapse file into a folder."""

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
synthe unpack synthe-60m.synapse -o runs/copy --only model   an ordinary checkpoint, to train from
synthe unpack team.synapse -o lora --only adapters         PEFT's folders
synthe hub pull ORG/NAME | synthe unpack - -o mine""",
)
def unpack(
    file: CheckpointArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="The folder; by default the file's name.")
    ] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="PART", help="model, adapters or knowledge.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write what a file carries into a folder, every member as it was packed, and print the folder's path.

    Nothing is written before every member has been checked. The folder can be used, verified and packed again.
    """
    path = find_checkpoint(file)

    from synthe_core.packing.unpack import unpack

    with choose_renderer(as_json) as shown:
        for result in results(unpack(path, out, only), shown.show):
            shown.result(result)
