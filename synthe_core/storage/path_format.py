"""Which format a path is of that may hold a model."""

from __future__ import annotations

import json
from pathlib import Path

MANIFEST, CONFIG, ADAPTER, GGUF = "manifest.json", "config.json", "adapter_config.json", b"GGUF"
MAX_BYTES = 16 << 20  # of a manifest
CHECKPOINTS, RECIPE = "checkpoints", "recipe.yaml"
MODEL_TYPE, ARCHITECTURE = "synthe", "SyntheForCausalLM"
"""What a config.json of ours says to transformers."""


def format_of(path: Path) -> str | None:
    """The entry of the table of formats for `path`; None for a checkpoint's or run's own folder."""
    if path.is_file():
        return "gguf" if is_gguf(path) else "synapse"
    if is_synapse(path):
        return "synapse"
    is_own = (path / MANIFEST).is_file() or (path / ADAPTER).is_file() or is_run(path)
    return "huggingface" if not is_own and (path / CONFIG).is_file() else None


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / RECIPE).is_file() and (path / CHECKPOINTS).is_dir()


def is_gguf(file: Path) -> bool:
    """Whether a file begins like a GGUF file."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(GGUF)) == GGUF
    except OSError:
        return False


def is_synapse(folder: Path) -> bool:
    """Whether a folder has the layout of a .synapse file rather than of a checkpoint."""
    try:
        if (folder / MANIFEST).stat().st_size > MAX_BYTES:
            return False
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == "synapse"
