"""What the commands of `synthe swarm` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli.help import Group

FolderArgument = Annotated[Path, typer.Argument(metavar="SWARM", help="The folder of a swarm.")]


def listing_group(listing: str) -> type[Group]:
    """A group of commands about a swarm, of which `listing` runs where a swarm's folder stands in a command's place."""

    class Listing(Group):
        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            is_folder = args and args[0] not in self.list_commands(ctx) and (Path(args[0]) / "swarm.yaml").is_file()
            return super().resolve_command(ctx, [listing, *args] if is_folder else args)

    return Listing
