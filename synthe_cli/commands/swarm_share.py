"""`synthe swarm export` and `synthe swarm install`: specialists as files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.commands.swarm_options import FolderArgument
from synthe_cli.escape import escaped
from synthe_cli.help import Command
from synthe_cli.options import DeviceOption, JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_core.events import drain, results

app = typer.Typer()


@app.command(
    cls=Command,
    short_help="Write a specialist into one file.",
    epilog="""\
synthe swarm export team python -o python.synapse
synthe swarm export team python --facts none --no-state     small: its adapter, prompt and documents
synthe swarm export team python -o python.synapse && synthe hub push python.synapse ORG/NAME""",
)
def export(
    folder: FolderArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The specialist's name.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: NAME.synapse.")] = None,
    facts: Annotated[
        str, typer.Option("--facts", metavar="trusted|all|none", help="Which of the facts that everybody sees.")
    ] = "trusted",
    state: Annotated[
        bool, typer.Option("--state/--no-state", help="With its remembered state, where it has one.")
    ] = True,
    licence: Annotated[str | None, typer.Option("--license", metavar="ID", help="Such as apache-2.0.")] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a specialist into one .synapse file: its prompt, documents, adapter, remembered state and facts.

    Facts of users, conversations, answers and preference pairs are never in it. A prompt or document with a secret in
    it is refused.
    """
    from synthe_core.errors import unknown
    from synthe_core.hardware.mkl import request_strict_mode

    if facts not in ("trusted", "all", "none"):
        raise unknown("choice of facts", facts, ("trusted", "all", "none"))
    request_strict_mode()
    from synthe_core.hardware.placement import choose_device
    from synthe_core.hardware.probe import probe
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.sharing.export import ExportOptions
    from synthe_core.swarm.sharing.export import export as write

    place = choose_device(device or "auto", probe()).value if state else "cpu"
    options = ExportOptions(facts, state, licence, place)  # type: ignore[arg-type]
    with choose_renderer(as_json) as shown:
        for result in results(write(SwarmFolder(folder), name, out, options), shown.show):
            shown.result(result)


@app.command(
    cls=Command,
    short_help="Add a specialist from a file.",
    epilog="""\
synthe swarm install team python.synapse
synthe swarm install team ORG/NAME --name snakes        from the Hugging Face hub, under another name
synthe swarm install team law.synapse --trust           its facts enter prompts without a review""",
)
def install(
    folder: FolderArgument,
    file: Annotated[str, typer.Argument(metavar="FILE|ORG/NAME", help="A .synapse file, or a repository of the hub.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Another name than the one in the file.")
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Let its facts enter prompts without a review.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", "-r", metavar="REV", help="Of the repository. Default: main.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add the specialist in a file to a swarm on the same base. A running server takes it up within a second.

    The file is checked first; it is installed whole or not at all.
    """
    from synthe_core.packing.hub import pull
    from synthe_core.storage.hub.model_id import hub_id
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.sharing.install import install as read

    swarm = SwarmFolder(folder)
    with tempfile.TemporaryDirectory(prefix="synthe-") as scratch, choose_renderer(as_json) as shown:
        path = Path(file).expanduser()
        if not path.exists() and hub_id(file) is not None:
            path = Path(scratch) / f"{escaped(file).rpartition('/')[2]}.synapse"
            drain(pull(file, path, revision=revision), shown.show)
        for result in results(read(swarm, path, name, trust=trust), shown.show):
            shown.result(result)
