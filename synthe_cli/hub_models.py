"""Arguments that name a model of the Hugging Face hub: fetched with progress on stderr, and offered by the shell."""

from __future__ import annotations

from pathlib import Path

from synthe_cli.renderer import choose_renderer
from synthe_core.events import drain


def find_model(text: str | Path) -> Path:
    """The path of a model argument: a local one as it is; of an id of the hub, where the cache has it.

    What the cache lacks is fetched. Progress goes to stderr also with --json: stdout has the results of the command.
    """
    from synthe_core.storage.hub.fetch import mark_path
    from synthe_core.storage.hub.model_id import hub_id

    if hub_id(str(text)) is None:
        return mark_path(Path(text).expanduser())

    from synthe_core.interop.hub import fetch_model

    with choose_renderer(as_json=False) as shown:
        path = drain(fetch_model(str(text)), shown.show).path
    assert path is not None
    return path


def complete_hub(incomplete: str) -> list[str]:
    """The repositories in the hub's cache."""
    from synthe_core.storage.hub.snapshot import cached_repos

    return [name for name in cached_repos() if name.startswith(incomplete)]
