"""What can be merged. Each kind recognises its own folders; a new kind is a class and a line of `KINDS`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, closest
from synthe_core.merging.inputs.hub import from_hub, names_the_hub
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
"""Each entry is a class with `claims(path) -> bool`, and is made of a path. All but adapters are `Model`s."""


def open_input(text: str) -> Any:
    """The model or the adapter that was typed: a path, or an id of the hub. InputError where it is neither."""
    path = Path(text).expanduser()
    if not path.exists():
        if not names_the_hub(text):
            raise InputError(f"no such model: {text}", _nearby(path))
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
    """Whether what was typed is an adapter's folder here."""
    return bool(KINDS["adapter"].claims(Path(text).expanduser()))


def _nearby(path: Path) -> str:
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = closest(path.name, names)
    return f"did you mean {path.parent / near}?" if near else "name a folder, or ORG/NAME of the hub"
