"""The kinds of models that can be merged. Each recognises its own folders; a new kind is a class and a line of
KINDS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, closest
from synthe_core.merging.inputs.hub import from_hub, is_hub_id
from synthe_core.registry import Table

_HERE = "synthe_core.merging.inputs"

KINDS = Table(
    "kind of model",
    "synthe.merge_inputs",
    {
        "adapter": f"{_HERE}.adapter:Adapter",
        "checkpoint": f"{_HERE}.checkpoint:CheckpointModel",
        "huggingface": f"{_HERE}.huggingface:HuggingFaceModel",
    },
)
"""Each entry is a class with `claims(path) -> bool`, constructed from a path. All but adapters are `Model`s."""


def open_input(text: str) -> Any:
    """The model or adapter at a path or of an id of the hub. InputError if there is none."""
    path = Path(text).expanduser()
    if not path.exists():
        if not is_hub_id(text):
            raise InputError(f"no such model: {text}", _suggestion(path))
        path = from_hub(text)
    for kind in KINDS:
        if KINDS[kind].claims(path):
            return KINDS[kind](path, text)
    raise InputError(
        f"{path} is no model that can be merged",
        "a model is a run or checkpoint folder, a .synapse file, a Hugging Face folder with config.json and "
        "safetensors files, or a PEFT adapter's folder",
    )


def is_adapter(text: str) -> bool:
    """Whether `text` is the path of an adapter's folder."""
    return bool(KINDS["adapter"].claims(Path(text).expanduser()))


def _suggestion(path: Path) -> str:
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = closest(path.name, names)
    return f"did you mean {path.parent / near}?" if near else "name a folder, or ORG/NAME of the hub"
