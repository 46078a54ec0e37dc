"""The kinds of models that can be merged. Each recognises its own folders; a new kind is a class and a line of
KINDS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, closest
from synthe_core.events import Event
from synthe_core.interop.hub import fetch_named, local_path
from synthe_core.registry import Table
from synthe_core.storage.checkpoint import CHECKPOINTS, Checkpoint, checkpoints
from synthe_core.storage.hub.model_id import hub_id

_HERE = "synthe_core.merging.inputs"

KINDS = Table(
    "kind of model",
    "synthe.merge_inputs",
    {
        "adapter": f"{_HERE}.adapter:Adapter",
        "checkpoint": f"{_HERE}.checkpoint:CheckpointModel",
        "gguf": f"{_HERE}.gguf:GgufModel",
        "huggingface": f"{_HERE}.huggingface:HuggingFaceModel",
    },
)
"""Each entry is a class with `claims(path) -> bool`, constructed from a path. All but adapters are `Model`s."""


def open_input(text: str) -> Any:
    """The model or adapter at a path or of an id of the hub. InputError if there is none."""
    path = Path(text).expanduser()
    if not path.exists():
        if hub_id(text) is None:
            raise InputError(f"no such model: {text}", _suggestion(path))
        path = local_path(text, weights_only=True)
    path = _adapter_of_run(path)
    for kind in KINDS:
        if KINDS[kind].claims(path):
            return KINDS[kind](path, text)
    raise InputError(
        f"{path} is no model that can be merged",
        "a model is a run or checkpoint folder, a .synapse file, a GGUF file, a Hugging Face folder with "
        "config.json and safetensors files, or a PEFT adapter's folder",
    )


def is_adapter(text: str) -> bool:
    """Whether `text` is the path, or id of the hub, of an adapter."""
    return bool(KINDS["adapter"].claims(_adapter_of_run(local_path(text, weights_only=True))))


def _adapter_of_run(path: Path) -> Path:
    """The best checkpoint of a run that trained an adapter, by the rule of every verb; any other path itself."""
    if not (path / CHECKPOINTS).is_dir() or not checkpoints(path):
        return path
    best = Checkpoint.open(path).path
    return best if KINDS["adapter"].claims(best) else path


def fetch_inputs(names: Iterable[str | None]) -> Iterator[Event]:
    """Fetches the models of the hub among the names of models and adapters (as MODEL+ADAPTER, too), with its events."""
    for name in names:
        if name is not None and not Path(name).exists():
            yield from fetch_named(name.split("+"), weights_only=True)


def _suggestion(path: Path) -> str:
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = closest(path.name, names)
    return f"did you mean {path.parent / near}?" if near else "name a folder, or ORG/NAME of the hub"
