"""Small values from the host to a device, without waiting for the work that is queued there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(values: Sequence[Any] | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host as a tensor on `device`.

    `torch.tensor(values, device="cuda")` copies from pageable memory, for which the host waits until everything before
    it is computed. From page-locked memory the copy is queued as everything else is.
    """
    made = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if device.type != "cuda":
        return made.to(device)
    return made.pin_memory().to(device, non_blocking=True)
