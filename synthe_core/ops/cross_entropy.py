"""The loss of a language model, straight from hidden states, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.ops.dispatch import compute_dtype, op
from synthe_core.ops.softmax_error import softmax_error

IGNORED = -100
CHUNK_BYTES = 32 << 20  # logits held at a time


@op
def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats of the logits `hidden @ weight.T`: its sum, and each token's share.

    hidden [B, T, D], weight [V, D], targets int64 [B, T] with -100 = not scored. Returns the sum over scored tokens
    (a scalar that carries the gradient) and the losses [B, T] (without gradient, 0 where not scored).
    """
    logits = F.linear(hidden, weight).flatten(0, 1)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="none").view_as(targets)
    return losses.sum(), losses.detach()


@linear_cross_entropy.kernel("chunked", rank=10, tolerance=1e-5)
def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Makes the gradients while a chunk's logits are at hand: memory for one chunk, and no second product."""
    return _Chunked.apply(hidden, weight, targets)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        flat, labels = hidden.flatten(0, 1), targets.flatten()
        chunk = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        narrow = compute_dtype(hidden)
        matrix = weight.to(narrow)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        losses = torch.empty(labels.shape, dtype=wide, device=hidden.device)
        hidden_grad = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, labels.shape[0], chunk):
            part = slice(start, start + chunk)
            inputs = flat[part].to(narrow)
            losses[part], error = softmax_error(inputs @ matrix.T, labels[part])
            if hidden_grad is not None:
                hidden_grad[part] = error @ matrix
            if weight_grad is not None:
                weight_grad += error.T @ inputs
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.shape = hidden.shape
        losses = losses.view(targets.shape)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> Any:
        hidden_grad, weight_grad = ctx.saved_tensors
        if hidden_grad is not None:
            hidden_grad = (hidden_grad * upstream).view(ctx.shape)
        if weight_grad is not None:
            weight_grad = weight_grad * upstream
        return hidden_grad, weight_grad, None
