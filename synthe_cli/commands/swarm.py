"""`synthe swarm`: specialists on one base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.escape import escaped
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.hub_models import find_model
from synthe_cli.options import JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_core.events import Result

ABOUT = "Route requests to specialists on one model, check the answers, and learn from use."
app = typer.Typer(cls=Group, help=ABOUT, **SETTINGS)

SwarmArgument = Annotated[Path, typer.Argument(metavar="SWARM", help="The folder of a swarm.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The specialist's name.")]


@app.callback(help=ABOUT)
def group() -> None: ...


@app.command(
    cls=Command,
    short_help="Make the folder of a new swarm.",
    epilog="""\
synthe swarm init team --base model.gguf
synthe swarm init team --base ORG/NAME                  a model of the Hugging Face hub, downloaded first""",
)
def init(
    folder: Annotated[Path, typer.Argument(metavar="SWARM", help="The new folder.")],
    base: Annotated[
        str, typer.Option("--base", metavar="MODEL", help="A run, .synapse or GGUF file, model folder, or ORG/NAME.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Make the folder of a new swarm and print its path.

    Its swarm.yaml has every key with its meaning and default. All specialists run on the base: each is a system prompt,
    an adapter, or both.
    """
    find_model(base)
    from synthe_core.swarm.folder import SwarmFolder

    made = SwarmFolder.create(folder, base)
    with choose_renderer(as_json) as shown:
        shown.result(Result({"base": made.spec.base}, made.path))


@app.command(
    cls=Command,
    short_help="Add a specialist.",
    epilog="""\
synthe swarm add team python --capabilities python,debugging --prompt "You write Python."
synthe swarm add team python --capabilities python --adapter runs/python      the adapter is copied into the swarm
synthe swarm add team law --capabilities contracts --document terms.txt       a text that it has read""",
)
def add(
    folder: SwarmArgument,
    name: NameArgument,
    capabilities: Annotated[
        str, typer.Option("--capabilities", "-c", metavar="WORDS", help="What it is good at, separated by commas.")
    ] = "",
    description: Annotated[str, typer.Option("--description", metavar="TEXT", help="A sentence about it.")] = "",
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="Its system prompt.")] = "",
    document: Annotated[
        list[Path] | None,
        typer.Option("--document", metavar="FILE", help="A text that follows the system prompt. Repeatable."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", metavar="DIR", help="A LoRA adapter of the base: a run, or a folder of PEFT."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Run it on another model than the base.")
    ] = None,
    priority: Annotated[
        float,
        typer.Option("--priority", min=-1, max=1, metavar="N", help="Added to its estimated success when routing."),
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Add a specialist to a swarm.

    Requests are first routed by the words of its capabilities and their meaning to the base model, later by what has
    succeeded. A running server takes the change up when it is started again.
    """
    from synthe_core.errors import InputError
    from synthe_core.swarm.folder import SwarmFolder, relative_path
    from synthe_core.swarm.spec import SpecialistSpec

    swarm = SwarmFolder(folder)
    if adapter is not None:
        adapter = str(find_model(adapter))
    if model is not None:
        find_model(model)
    values = {
        "description": description,
        "capabilities": capabilities,
        "prompt": prompt,
        "documents": [relative_path(str(each), folder) for each in document or ()],
        "model": None if model is None else relative_path(model, folder),
        "priority": priority,
    }
    spec = SpecialistSpec.model_validate(values)
    if not (prompt or document or adapter or model):
        raise InputError(
            f"nothing makes '{name}' differ from the base", "give it --prompt, --document, --adapter or --model"
        )
    added = swarm.add(name, spec, adapter)
    with choose_renderer(as_json) as shown:
        shown.result(Result({"specialist": name, **added.model_dump(mode="json", exclude_defaults=True)}))


@app.command(
    cls=Command,
    short_help="Remove a specialist.",
    epilog="synthe swarm remove team python",
)
def remove(folder: SwarmArgument, name: NameArgument, as_json: JsonOption = False) -> None:
    """Remove a specialist from a swarm. Its adapters and the record of its answers stay."""
    from synthe_core.swarm.folder import SwarmFolder

    SwarmFolder(folder).remove(name)
    with choose_renderer(as_json) as shown:
        shown.result(Result({"specialist": name, "removed": True}))


@app.command(
    cls=Command,
    short_help="Show the specialists and what they have done.",
    epilog="""\
synthe swarm status team
synthe swarm status team --json | jq .values.specialists""",
)
def status(folder: SwarmArgument, as_json: JsonOption = False) -> None:
    """Show the specialists of a swarm, their adapters, and their success by domain."""
    from synthe_cli.swarm_table import status_text
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.status import status as facts

    values = facts(SwarmFolder(folder))
    with choose_renderer(as_json) as shown:
        if as_json:
            shown.result(Result(values))
        else:
            print(escaped_lines(status_text(values)))


def escaped_lines(text: str) -> str:
    """The text with control characters escaped in every line."""
    return "\n".join(escaped(line) for line in text.split("\n"))
