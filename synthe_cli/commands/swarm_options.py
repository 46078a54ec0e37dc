"""What the commands of `synthe swarm` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FolderArgument = Annotated[Path, typer.Argument(metavar="SWARM", help="The folder of a swarm.")]
