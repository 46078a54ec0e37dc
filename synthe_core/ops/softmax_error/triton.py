"""Cross-entropy and its gradient in Triton: one kernel, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.ops.triton_launch import block, launch, wide

BLOCK = 2048


def triton_softmax_error(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As `softmax_error`; the errors take the place of the logits."""
    from synthe_core.ops.softmax_error.triton_kernels import softmax_error_kernel

    rows, width = logits.shape
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    losses = torch.empty(rows, dtype=kind, device=logits.device)
    if rows:
        launch(
            softmax_error_kernel, (rows,), logits, logits, labels.contiguous(), losses, width,
            WIDE=wide(logits.dtype), BLOCK=block(width, BLOCK),
        )  # fmt: skip
    return losses, logits
