"""Cross-entropy of logits and its gradient in one step, because a training step always needs both."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, op
from synthe_core.ops.native import library, pointer, refusal
from synthe_core.ops.softmax_error.triton import triton_softmax_error
from synthe_core.ops.triton_launch import RANK
from synthe_core.ops.triton_launch import refusal as triton_refusal

SOURCE = "softmax_error/softmax_error.c"
_SUFFIX = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float64: "double"}


@op
def softmax_error(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """loss = log Σ_v exp(x_v) - x_label and error = softmax(x) - onehot(label), row by row.

    logits [N, V], which may be overwritten; labels int64 [N], negative = not scored: loss 0 and error 0. Returns losses
    [N] in nats (float32, or float64 for float64) and errors [N, V] as logits are stored. Not differentiable itself.
    """
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    values, scored, index = logits.to(wide), labels >= 0, labels.clamp_min(0)[:, None]
    normaliser = values.logsumexp(-1, keepdim=True)
    losses = (normaliser - values.gather(1, index))[:, 0].where(scored, 0.0)
    error = (values - normaliser).exp()
    error.scatter_add_(1, index, error.new_full((), -1.0).expand(index.shape))
    return losses, error.where(scored[:, None], 0.0).to(logits.dtype)


@softmax_error.kernel("native", rank=20, tolerance=1e-5)
def native(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """C: in place, one trip of each row through the cache."""
    losses = torch.empty(labels.shape, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    sizes = ctypes.c_int64(logits.shape[0]), ctypes.c_int64(logits.shape[1])
    function = getattr(library(SOURCE), f"softmax_error_{_SUFFIX[logits.dtype]}")
    function(pointer(logits), pointer(labels.contiguous()), pointer(losses), *sizes)
    return losses, logits


@softmax_error.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Triton: in place, two passes over each row."""
    return triton_softmax_error(logits, labels)


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    if not call.arguments["logits"].is_contiguous():
        return "the logits are not contiguous"
    return triton_refusal(hardware, call, (*_SUFFIX, torch.float16))


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    if call.dtype not in _SUFFIX:
        return f"no native code for {call.dtype}"
    if not call.arguments["logits"].is_contiguous():
        return "the logits are not contiguous"
    return refusal(hardware, call.device, SOURCE)
