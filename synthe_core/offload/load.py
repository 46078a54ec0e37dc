"""The model of a checkpoint, whole or within a given amount of memory."""

from __future__ import annotations

import torch

from synthe_core.errors import InputError
from synthe_core.model.language_model import LanguageModel
from synthe_core.offload.model import offloaded_model
from synthe_core.offload.plan import TEXTS
from synthe_core.storage.checkpoint import Checkpoint


def build_model(
    checkpoint: Checkpoint, format: str | None, device: torch.device, memory: int | None = None, texts: int = TEXTS
) -> LanguageModel:
    """The language model of a checkpoint, ready to run in the active context. format: of its matrices, as in
    `Checkpoint.model`; memory: the bytes that this process may take, None for no limit. InputError if they are too few,
    or on another device than the CPU. texts: how many there may be at once, which need memory too. How fast it is:
    `offload.speed.measure_speed`."""
    if memory is None:
        return checkpoint.model(device, format=format)
    if device.type != "cpu":
        raise InputError(f"--memory is for models on the CPU, not on {device.type}", "add --device cpu")
    return offloaded_model(checkpoint, format, memory, texts)


def check_no_limit(memory: int | None) -> None:
    """InputError for a limit, of a model that transformers runs."""
    if memory is not None:
        raise InputError(
            "--memory: transformers runs this model, and holds all of its weights", "leave it out for this model"
        )
