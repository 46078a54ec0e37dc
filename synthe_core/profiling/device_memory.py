"""Memory: how much there is, and how much a pass will take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.model.classifier import Model
from synthe_core.training.settings import Settings

CGROUP = Path("/sys/fs/cgroup")
HEADROOM = 0.8  # of what is free is planned for
TRANSIENT = 1.5  # a pass holds this much more than what it saves for its backward pass: temporaries, gradients


def available(device: torch.device) -> int:
    """Bytes that can still be had on `device`; a container's limit counts."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free


def in_use(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, else what the process has resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def row_bytes(model: Model, batch: Batch, settings: Settings) -> float:
    """Bytes that a pass keeps for its backward pass for each of its rows, measured on the rows given."""
    kept: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    recompute, model.recompute = model.recompute, False
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, _same), settings.context.activate():
            loss, _ = model.loss(batch.inputs.to(settings.device), batch.targets.to(settings.device))
    finally:
        model.recompute = recompute
    del loss
    total = float(sum(kept.values()))
    if recompute:  # a block at a time, and what goes into each
        total = total / model.spec.blocks + 4.0 * model.spec.blocks * model.spec.width * batch.inputs.numel()
    return TRANSIENT * total / batch.inputs.shape[0]


def planned(model: Model, device: torch.device) -> float:
    """Bytes for the rows of a pass: what is free, less gradients and the optimizer's state that are still to come."""
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return HEADROOM * available(device) - 3.0 * size


def _same(saved: Any) -> Any:
    return saved
