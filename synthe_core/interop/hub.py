"""Models of the hub by their id: the one place where a path argument that names one becomes a local path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from synthe_core.errors import InputError
from synthe_core.events import Event, drain, without_results
from synthe_core.interop.huggingface.remote_code import check_runs_without_code
from synthe_core.storage.hub.fetch import fetch, mark_path
from synthe_core.storage.hub.model_id import SYNTAX, HubId, hub_id
from synthe_core.storage.path_format import format_of

if TYPE_CHECKING:  # fetching needs no torch
    from synthe_core.data.tokenizers import Tokenizer
    from synthe_core.storage.checkpoint.sources import CheckpointSource


def fetch_model(text: str, *, update: bool = False, weights_only: bool = False) -> Iterator[Event]:
    """Fetches the model of an id as far as the cache lacks it; the last event is a Result with its local path.

    update: takes the newest commit, where the cache has an older one. weights_only: accepts a model that runs with code
    of its repository only, for verbs that read tensors and run no model. Errors: see `storage.hub.fetch.fetch`.
    """
    if (model := HubId.parse(text)) is None:
        raise InputError(f"'{text}' is no model of the hub", f"write {SYNTAX}")
    return fetch(model, update=update, check=None if weights_only else check_runs_without_code)


def local_path(path: Path | str, *, weights_only: bool = False) -> Path:
    """The path of a model: of an id of the hub, where the cache has it now; of anything else, the path itself."""
    text = str(path)
    if hub_id(text) is None:
        return mark_path(Path(text).expanduser())
    result = drain(fetch_model(text, weights_only=weights_only)).path
    assert result is not None
    return result


def fetch_named(names: Iterable[str], *, weights_only: bool = False) -> Iterator[Event]:
    """Fetches the models of the hub among arguments that are paths or ids, and yields events without a Result."""
    for name in names:
        if hub_id(name) is not None:
            yield from without_results(fetch_model(name, weights_only=weights_only), [])


def tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the model of the hub whose id is `path`; of a model folder, without its weights."""
    if (model := HubId.parse(str(path))) is None:
        raise InputError(f"'{path}' is no model of the hub", f"write {SYNTAX}")
    from synthe_core.data.tokenizers import open_tokenizer

    return open_tokenizer(str(drain(fetch(model, without_weights=True)).path))


def source(path: Path) -> CheckpointSource:
    """The model of the hub whose id is `path`."""
    from synthe_core.storage.checkpoint.sources import FORMATS, FolderSource

    fetched = local_path(path)
    kind = format_of(fetched)
    opened: CheckpointSource = FolderSource(fetched) if kind is None else FORMATS[kind](fetched)
    return opened
