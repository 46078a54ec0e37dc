"""A model as it is served: its weights once, its tokenizer, and the adapters that it can wear."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from synthe_core.adapters.low_rank import Adapter
from synthe_core.checkpoint import Checkpoint
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.model.language_model import LanguageModel


@dataclass
class Served:
    """name: what requests call it. limit: the most tokens that it can tell apart, None for a state of constant size."""

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    path: Path
    digest: str
    created: int
    adapters: dict[str, Adapter] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, name: str | None = None, device: torch.device | str = "cpu") -> Served:
        """The checkpoint, run folder or .synapse file at `path`."""
        checkpoint = Checkpoint.open(path)
        model = checkpoint.model(device).eval()
        model.requires_grad_(False)
        named = name or path.resolve().name.removesuffix(".synapse")
        created = int(checkpoint.path.stat().st_mtime)
        return cls(named, model, checkpoint.tokenizer(), checkpoint.path, checkpoint.digest, created)

    @property
    def state_bytes(self) -> int:
        """The most bytes that one text's state takes, however long the text."""
        return self.model.state_bytes(1 << 20)
