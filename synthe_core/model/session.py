"""A session: what a model remembers of a text, in a file, so that it can go on exactly where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from synthe_core import state as states
from synthe_core.atomic import failure
from synthe_core.errors import InputError
from synthe_core.model.language_model import LanguageModel, ModelState

FORMAT = "synthe-session-1"


class Session(NamedTuple):
    """The state after reading everything but `pending` int64 [B], the newest token of each row."""

    state: ModelState
    pending: Tensor

    def spread(self, count: int) -> Session:
        """The session for `count` prompts: its own rows, or its only row for all of them."""
        have = self.pending.shape[0]
        if have == count:
            return self
        if have != 1:
            raise InputError(f"the session has {have} rows, and there are {count} prompts", "give as many prompts")
        index = torch.zeros(count, dtype=torch.int64)
        return Session(states.take(self.state, index), self.pending.expand(count))

    def save(self, path: Path, model: LanguageModel) -> None:
        """Writes the session to one safetensors file, whole or not at all."""
        tensors = states.to_tensors(self.state, "state") | {"pending": self.pending.contiguous()}
        self.check_target(path)
        partial = path.with_name(path.name + ".partial")
        try:
            save_file(tensors, partial, metadata={"format": FORMAT, "model": fingerprint(model)})
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise failure(path, error) from None

    @staticmethod
    def check_target(path: Path) -> None:
        """InputError where no file can be made at `path`: asked before the work, so that it is not in vain."""
        if not path.parent.is_dir():
            raise InputError(f"no such folder: {path.parent}", "make it first; a session is one file in it")
        if path.is_dir():
            raise InputError(f"{path} is a folder", "a session is a file: name one")

    @classmethod
    def load(cls, path: Path, model: LanguageModel) -> Session:
        """Reads a session that `model` (or one of the same shape) wrote."""
        if not path.is_file():
            raise InputError(f"no such session: {path}", "--state-out writes one")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is no session: {error}", "--state-out writes one") from None
        if metadata.get("format") != FORMAT or "pending" not in tensors:
            raise InputError(f"{path} is a safetensors file, but no session", "--state-out writes one")
        if metadata.get("model") != fingerprint(model):
            raise InputError(f"{path} belongs to another model", "a session goes on only with the model that made it")
        pending = tensors["pending"].to(model.embedding.weight.device)
        template = model.init_state(pending.shape[0])
        return cls(states.from_tensors(template, tensors, "state"), pending)


def fingerprint(model: LanguageModel) -> str:
    """A digest of the model's shape and of a few of its weights: sessions of another model are refused."""
    text = json.dumps([model.spec.model_dump(mode="json"), model.vocab], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    maps = [module for module in model.blocks.modules() if isinstance(module, nn.Linear)]
    for weight in (model.embedding.weight, *(module.weight for module in maps)):  # an adapter's model is another model
        digest.update(weight.detach()[:8, :8].to(torch.float32).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
