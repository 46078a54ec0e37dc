"""The options about tools, of `synthe chat` and `synthe serve`."""

from __future__ import annotations

from typing import Annotated

import typer

ToolsOption = Annotated[
    str | None,
    typer.Option(
        "--tools",
        metavar="NAMES",
        help="Tools that the model calls and that run here, with commas between them. python: programs, in a sandbox "
        "without network, files and privileges. search=INDEX: passages of an index of `synthe documents`.",
    ),
]
UnsafeToolsOption = Annotated[
    bool,
    typer.Option(
        "--unsafe-tools",
        help="Where the system cannot isolate programs, run them all the same: they then may do what you may.",
    ),
]
