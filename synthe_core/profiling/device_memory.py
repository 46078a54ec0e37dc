"""Memory of a device: how much is available, and how much a training pass takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.classifier import Model

CGROUP = Path("/sys/fs/cgroup")
USABLE = 0.8  # of what is available
TRANSIENT = 1.5  # a pass takes this much more than what it saves for its backward pass: temporaries, gradients


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`, within a container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free


def used_bytes(device: torch.device) -> int:
    """The peak of the allocated bytes on a GPU; elsewhere the resident bytes of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def row_bytes(model: Model, batch: Batch, context: ExecutionContext) -> float:
    """Bytes per row that a pass saves for its backward pass, measured on `batch`."""
    saved: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    recompute, model.recompute = model.recompute, False
    try:
        with torch.autograd.graph.saved_tensors_hooks(count, _identity), context.activate():
            loss, _ = model.loss(batch.inputs.to(context.device), batch.targets.to(context.device))
    finally:
        model.recompute = recompute
    del loss
    total = float(sum(saved.values()))
    if recompute:  # one block at a time, and the input of each
        total = total / model.spec.blocks + 4.0 * model.spec.blocks * model.spec.width * batch.inputs.numel()
    return TRANSIENT * total / batch.inputs.shape[0]


def available_for_rows(model: Model, device: torch.device) -> float:
    """Bytes for the rows of a pass: what is usable, less the gradients and the optimizer's state to come."""
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return USABLE * available_bytes(device) - 3.0 * size


def _identity(saved: Any) -> Any:
    return saved
