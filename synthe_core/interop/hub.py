"""Models of the hub by their id: the one place where a path argument that names one becomes a local path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError
from synthe_core.events import Event, drain, without_results
from synthe_core.storage.checkpoint.sources import FORMATS, CheckpointSource, FolderSource
from synthe_core.storage.hub.fetch import fetch
from synthe_core.storage.hub.model_id import SYNTAX, HubId, hub_id
from synthe_core.storage.path_format import format_of


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
        return Path(text).expanduser()
    result = drain(fetch_model(text, weights_only=weights_only)).path
    assert result is not None
    return result


def fetch_named(names: Iterable[str], *, weights_only: bool = False) -> Iterator[Event]:
    """Fetches the models of the hub among arguments that are paths or ids, and yields events without a Result."""
    for name in names:
        if hub_id(name) is not None:
            yield from without_results(fetch_model(name, weights_only=weights_only), [])


def source(path: Path) -> CheckpointSource:
    """The model of the hub whose id is `path`."""
    fetched = local_path(path)
    kind = format_of(fetched)
    opened: CheckpointSource = FolderSource(fetched) if kind is None else FORMATS[kind](fetched)
    return opened


def check_runs_without_code(name: str, config: dict[str, Any]) -> None:
    """InputError for a model that only Python code of its own repository can run (`trust_remote_code`).

    A config with an `auto_map` names such code. It is not needed where our learners or transformers have the
    architecture.
    """
    mapping, architectures = config.get("auto_map"), config.get("architectures")
    if not isinstance(mapping, dict) or "AutoModelForCausalLM" not in mapping:
        return
    names = [each for each in architectures if isinstance(each, str)] if isinstance(architectures, list) else []
    if any(each in known_architectures() for each in names):
        return
    raise InputError(
        f"{name} runs with Python code of its repository only ({mapping['AutoModelForCausalLM']}), and synthe runs no "
        "code that it fetches",
        "a GGUF file of the model may run; `synthe merge` takes it, as tensors",
    )


def known_architectures() -> set[str]:
    """The architectures that run without code of the hub: as learners, or by transformers where it is installed."""
    from synthe_core.interop.huggingface.weight_maps import ARCHITECTURES

    known = set(ARCHITECTURES)
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError:
        return known
    for each in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        known |= {each} if isinstance(each, str) else set(each)
    return known
