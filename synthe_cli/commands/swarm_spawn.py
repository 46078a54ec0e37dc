"""`synthe swarm spawn`: specialists that failing requests call for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from synthe_cli.commands.swarm_options import FolderArgument
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import DeviceOption, JsonOption
from synthe_cli.rows import print_rows
from synthe_core.errors import InputError

if TYPE_CHECKING:
    from synthe_core.swarm.folder import SwarmFolder

app = typer.Typer(cls=Group, **SETTINGS)
HEADS = ["name", "requests", "hours", "capabilities", "prompt"]


@app.command(
    cls=Command,
    short_help="Propose specialists for requests that keep failing.",
    epilog="""\
synthe swarm spawn team                     find what is missing, and show it
synthe swarm spawn team --approve tax       make this specialist
synthe swarm spawn team --reject tax        it is not proposed again""",
)
def spawn(
    folder: FolderArgument,
    approve: Annotated[
        list[str] | None, typer.Option("--approve", metavar="NAME", help="Make this proposed specialist. Repeatable.")
    ] = None,
    reject: Annotated[
        list[str] | None, typer.Option("--reject", metavar="NAME", help="Do not propose it again. Repeatable.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose specialists for requests that were rated as failures, or answered with little confidence.

    Similar requests that keep coming become a proposal: a name and capabilities from their own words, and a
    prompt that the base writes. An approved one takes part in a running server within a second, and learns from
    corrections.
    """
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.opening import open_store
    from synthe_core.swarm.spawning.proposals import Proposals, ProposalState

    swarm = SwarmFolder(folder)
    _ = swarm.spec
    if not swarm.has_database:
        raise InputError(f"{folder} has answered nothing yet", f"ask it: synthe swarm ask {folder} REQUEST")
    store = open_store(swarm)
    proposals = Proposals(swarm, store)
    try:
        for name in reject or ():
            proposals.reject(name)
        for name in approve or ():
            proposals.approve(name)
        decided = bool(approve or reject)
        if not decided and proposals.find():
            _propose(swarm, device)
        new, made = proposals.entries(ProposalState.NEW), proposals.entries(ProposalState.APPROVED)
    finally:
        store.close()
    shown = [each for each in made if each.name in (approve or ())] if decided else new
    rows = [
        [each.name, str(each.requests), f"{each.hours:.0f}", ", ".join(each.capabilities), each.prompt]
        for each in shown
    ]
    print_rows("proposal", [each.json() for each in shown], HEADS, rows, as_json, none="no specialist is proposed")


def _propose(swarm: SwarmFolder, device: str | None) -> None:
    """Loads the base, which writes the prompts of what is new."""
    from synthe_core.hardware.mkl import request_strict_mode

    request_strict_mode()
    from synthe_core.hardware.placement import choose_device
    from synthe_core.hardware.probe import probe
    from synthe_core.swarm.spawning.proposals import Proposals
    from synthe_core.swarm.spawning.spawn import propose
    from synthe_core.swarm.team import open_swarm

    with open_swarm(swarm, choose_device(device or "auto", probe()).value) as opened:
        propose(Proposals(swarm, opened.store), opened.write_json)
