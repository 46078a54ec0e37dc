"""The loss of a language model, from hidden states, without all logits in memory at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.ops.dispatch import compute_dtype, op
from synthe_core.ops.quantized_linear import multiply
from synthe_core.ops.softmax_error import softmax_error
from synthe_core.quantization.matrix import QuantizedMatrix

IGNORED = -100
CHUNK_BYTES = 32 << 20  # logits in memory at a time


class TopPrediction(NamedTuple):
    """The model's most likely token: `correct` bool [B, T], whether it is the target (of equal logits, the first);
    `max_logprob` [B, T], the log of its probability, 0 where nothing is scored. Neither has a gradient."""

    correct: Tensor
    max_logprob: Tensor


@op
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_top: bool = False, cap: float | None = None
) -> tuple[Tensor, Tensor, TopPrediction | None]:
    """Cross-entropy in nats of the logits `hidden @ weight.T`: its sum, and each token's share. With a cap c the logits
    are c tanh(l / c).

    hidden [B, T, D], weight [V, D], targets int64 [B, T] with -100 = not scored. Returns the sum over scored tokens
    (a scalar that carries the gradient), the losses [B, T] (without gradient, 0 where not scored) and, with `with_top`,
    the TopPrediction; else None, as it costs a pass over the logits.
    """
    logits = F.linear(hidden, weight).flatten(0, 1)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    losses = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="none").view_as(targets)
    top = None
    if with_top:
        max_logprob, predicted = (x.view_as(targets) for x in logits.detach().log_softmax(-1).max(-1))
        top = TopPrediction(predicted == targets, torch.where(targets == IGNORED, 0.0, max_logprob))
    return losses.sum(), losses.detach(), top


@linear_cross_entropy.kernel("chunked", rank=10, tolerance=1e-5)
def chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, with_top: bool = False, cap: float | None = None
) -> tuple[Tensor, Tensor, TopPrediction | None]:
    """Computes the gradients with each chunk's logits: memory for one chunk, and no second product."""
    total, losses, *top = _Chunked.apply(hidden, weight, targets, with_top, cap, None)
    return total, losses, TopPrediction(*top) if with_top else None


def quantized_cross_entropy(
    hidden: Tensor,
    matrix: QuantizedMatrix,
    targets: Tensor,
    with_top: bool = False,
    cap: float | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, TopPrediction | None]:
    """`linear_cross_entropy` of a matrix that stays quantised, and of which a part is dequantised at a time; `bias` [V]
    is added to the logits. Neither has a gradient."""
    total, losses, *top = _Chunked.apply(hidden, matrix, targets, with_top, cap, bias)
    return total, losses, TopPrediction(*top) if with_top else None


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | QuantizedMatrix,
        targets: Tensor,
        with_top: bool,
        cap: float | None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        flat, labels = hidden.flatten(0, 1), targets.flatten()
        chunk = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        narrow = compute_dtype(hidden)
        matrix = weight.to(narrow) if isinstance(weight, Tensor) else weight
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        losses = torch.empty(labels.shape, dtype=wide, device=hidden.device)
        top = [torch.empty(labels.shape, dtype=d, device=hidden.device) for d in (torch.bool, wide) if with_top]
        hidden_grad = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        weight_grad = None
        if ctx.needs_input_grad[1]:
            assert isinstance(weight, Tensor)
            weight_grad = torch.zeros_like(weight)
        for start in range(0, labels.shape[0], chunk):
            part = slice(start, start + chunk)
            inputs = flat[part].to(narrow)
            logits = _logits(inputs, matrix, bias)
            slope = None
            if cap is not None:
                bounded = torch.tanh(logits / cap)
                logits, slope = cap * bounded, 1 - bounded.square()
            if with_top:
                predicted, answer = logits.argmax(-1), labels[part]
                ahead = (logits.gather(1, torch.stack([predicted, answer.clamp_min(0)], 1)).to(wide)).diff(dim=1)[:, 0]
                top[0][part] = predicted == answer
            losses[part], error = softmax_error(logits, labels[part])
            if with_top:  # log p(predicted) = log p(answer) + logit of predicted - logit of answer
                top[1][part] = torch.where(answer < 0, 0.0, -losses[part] - ahead)
            if slope is not None:
                error = error * slope
            if hidden_grad is not None:
                hidden_grad[part] = _hidden_gradient(error, matrix)
            if weight_grad is not None:
                weight_grad += error.T @ inputs
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.shape = hidden.shape
        losses = losses.view(targets.shape)
        per_token = [each.view(targets.shape) for each in top]
        ctx.mark_non_differentiable(losses, *per_token)
        return losses.sum(), losses, *per_token

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> Any:
        hidden_grad, weight_grad = ctx.saved_tensors
        if hidden_grad is not None:
            hidden_grad = (hidden_grad * upstream).view(ctx.shape)
        if weight_grad is not None:
            weight_grad = weight_grad * upstream
        return hidden_grad, weight_grad, None, None, None, None


def _logits(inputs: Tensor, matrix: Tensor | QuantizedMatrix, bias: Tensor | None) -> Tensor:
    logits = inputs @ matrix.T if isinstance(matrix, Tensor) else multiply(inputs, matrix)
    return logits if bias is None else logits.add_(bias)


def _hidden_gradient(error: Tensor, matrix: Tensor | QuantizedMatrix) -> Tensor:
    return error @ matrix if isinstance(matrix, Tensor) else multiply(error, matrix, transposed=True)
