"""--pathways: new texts begin with the expert pathways of a saved session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from synthe_core.inference.loaded_model import LoadedModel

PathwaysOption = Annotated[
    Path | None,
    typer.Option(
        "--pathways",
        metavar="FILE",
        help="New texts begin with the strengths of expert pathways in this saved session (context_routed_moe).",
    ),
]


def begin_with_pathways(model: LoadedModel, path: Path | None) -> None:
    """New texts of the model begin with the pathways of the session at `path`, None for the model's own."""
    if path is not None:
        from synthe_core.model.pathways import set_pathway_prior
        from synthe_core.model.session import Session

        set_pathway_prior(model.model, Session.load(path, model.model))
