"""The loss of a language model, from hidden states, without all logits in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.hardware.probe import probe
from synthe_core.ops.dispatch import compute_dtype, op
from synthe_core.ops.quantized_linear import multiply
from synthe_core.ops.softmax_error import softmax_error
from synthe_core.quantization.matrix import QuantizedMatrix

IGNORED = -100
CHUNK_BYTES = 32 << 20  # logits in memory at a time, on a CPU
GPU_SHARE, GPU_CHUNK_BYTES = 64, 1 << 30  # on a GPU one part in so many of its memory, and at most so many bytes


def chunk_bytes(device: str) -> int:
    """Bytes of logits that are in memory at a time on a type of device.

    A chunk of tokens is a pass over the head's matrix and over its gradient: on a GPU few large ones cost less.
    """
    gpu = probe().gpu
    if device != "cuda" or gpu is None:
        return CHUNK_BYTES
    return max(CHUNK_BYTES, min(gpu.memory // GPU_SHARE, GPU_CHUNK_BYTES))


class TopPrediction(NamedTuple):
    """The model's most likely token: `correct` bool [B, T], whether it is the target (of equal logits, the first);
    `max_logprob` [B, T], the log of its probability, 0 where nothing is scored. Neither has a gradient."""

    correct: Tensor
    max_logprob: Tensor


@op
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    with_top: bool = False,
    cap: float | None = None,
    per_token: bool = False,
) -> tuple[Tensor, Tensor, TopPrediction | None]:
    """Cross-entropy in nats of the logits `hidden @ weight.T`: its sum, and each token's share. With a cap c the logits
    are c tanh(l / c).

    hidden [B, T, D], weight [V, D], targets int64 [B, T] with -100 = not scored. Returns the sum over scored tokens
    (a scalar that carries the gradient), the losses [B, T] (0 where not scored; they carry a gradient only with
    `per_token`) and, with `with_top`, the TopPrediction; else None, as it costs a pass over the logits.
    """
    logits = F.linear(hidden, weight).flatten(0, 1)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    losses = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="none").view_as(targets)
    top = None
    if with_top:
        max_logprob, predicted = (x.view_as(targets) for x in logits.detach().log_softmax(-1).max(-1))
        top = TopPrediction(predicted == targets, torch.where(targets == IGNORED, 0.0, max_logprob))
    return losses.sum(), losses if per_token else losses.detach(), top


@linear_cross_entropy.kernel("chunked", rank=10, tolerance=1e-5)
def chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    with_top: bool = False,
    cap: float | None = None,
    per_token: bool = False,
) -> tuple[Tensor, Tensor, TopPrediction | None]:
    """Computes the gradients with each chunk's logits: memory for one chunk, and no second product, unless the matrix
    has a gradient and `per_token` is set. On a CPU, tokens that are not scored cost nothing."""
    return _scored_only(hidden, targets, (weight, with_top, cap, None, per_token))


def quantized_cross_entropy(
    hidden: Tensor,
    matrix: QuantizedMatrix,
    targets: Tensor,
    with_top: bool = False,
    cap: float | None = None,
    bias: Tensor | None = None,
    per_token: bool = False,
) -> tuple[Tensor, Tensor, TopPrediction | None]:
    """`linear_cross_entropy` of a matrix that stays quantised, and of which a part is dequantised at a time; `bias` [V]
    is added to the logits. Neither has a gradient."""
    return _scored_only(hidden, targets, (matrix, with_top, cap, bias, per_token))


def _scored_only(hidden: Tensor, targets: Tensor, how: tuple[Any, ...]) -> tuple[Tensor, Tensor, TopPrediction | None]:
    """The chunked loss; on a CPU of the tokens that are scored: elsewhere the host would wait for their number."""
    matrix, with_top, *rest = how
    scored = targets != IGNORED
    if targets.device.type != "cpu" or bool(scored.all()):
        total, losses, *top = _Chunked.apply(hidden, matrix, targets, with_top, *rest)
    else:
        few = hidden[scored][None], matrix, targets[scored][None]
        total, *each = _Chunked.apply(*few, with_top, *rest)
        losses, *top = (values.new_zeros(targets.shape).masked_scatter(scored, values) for values in each)
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
        per_token: bool = False,
    ) -> tuple[Tensor, ...]:
        flat, labels = hidden.flatten(0, 1), targets.flatten()
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        losses = torch.empty(labels.shape, dtype=wide, device=hidden.device)
        top = [torch.empty(labels.shape, dtype=d, device=hidden.device) for d in (torch.bool, wide) if with_top]
        hidden_grad = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        later = per_token and ctx.needs_input_grad[1]  # the matrix's gradient, once the tokens' are known
        weight_grad = None
        if ctx.needs_input_grad[1] and not later:
            assert isinstance(weight, Tensor)
            weight_grad = torch.zeros_like(weight)
        narrow = compute_dtype(hidden)
        for part, inputs, matrix in _chunks(flat, weight, narrow):
            logits, slope = _capped(_logits(inputs, matrix, bias), cap)
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
        ctx.save_for_backward(hidden_grad, weight_grad, *((flat, weight, labels) if later else ()))
        ctx.shape, ctx.cap, ctx.narrow = hidden.shape, cap, narrow
        losses = losses.view(targets.shape)
        per_place = [each.view(targets.shape) for each in top]
        ctx.mark_non_differentiable(*per_place, *(() if per_token else (losses,)))
        ctx.set_materialize_grads(False)
        return losses.sum(), losses, *per_place

    @staticmethod
    def backward(ctx: Any, total: Tensor | None, each: Tensor | None, *_: Tensor) -> Any:
        hidden_grad, weight_grad, *again = ctx.saved_tensors
        parts = [part for part in (total, None if each is None else each.flatten()[:, None]) if part is not None]
        if not parts:
            return (None,) * 7
        upstream = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        if hidden_grad is not None:
            hidden_grad = (hidden_grad * upstream).view(ctx.shape)
        if weight_grad is not None:
            weight_grad = weight_grad * total
        elif again:
            flat, weight, labels = again
            weight_grad = _weight_grad(flat, weight, labels, upstream, ctx.cap, ctx.narrow)
        return hidden_grad, weight_grad, None, None, None, None, None


def _chunks(
    flat: Tensor, weight: Tensor | QuantizedMatrix, narrow: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor | QuantizedMatrix]]:
    """Stretches of the tokens [N, D] whose logits fit into `chunk_bytes`: place, tokens and matrix, in the type of the
    products."""
    matrix = weight.to(narrow) if isinstance(weight, Tensor) else weight
    chunk = max(1, chunk_bytes(flat.device.type) // (4 * weight.shape[0]))
    for start in range(0, flat.shape[0], chunk):
        part = slice(start, start + chunk)
        yield part, flat[part].to(narrow), matrix


def _logits(inputs: Tensor, matrix: Tensor | QuantizedMatrix, bias: Tensor | None) -> Tensor:
    logits = inputs @ matrix.T if isinstance(matrix, Tensor) else multiply(inputs, matrix)
    return logits if bias is None else logits.add_(bias)


def _capped(logits: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """The logits under the cap, and the slope of that; None without a cap."""
    if cap is None:
        return logits, None
    bounded = torch.tanh(logits / cap)
    return cap * bounded, 1 - bounded.square()


def _hidden_gradient(error: Tensor, matrix: Tensor | QuantizedMatrix) -> Tensor:
    return error @ matrix if isinstance(matrix, Tensor) else multiply(error, matrix, transposed=True)


def _weight_grad(
    flat: Tensor, weight: Tensor, labels: Tensor, upstream: Tensor, cap: float | None, narrow: torch.dtype
) -> Tensor:
    """The gradient of the matrix where each token's loss has an `upstream` of its own, [N, 1] or a scalar."""
    gradient = torch.zeros_like(weight)
    upstream = upstream.expand(len(flat), 1)
    for part, inputs, matrix in _chunks(flat, weight, narrow):
        logits, slope = _capped(_logits(inputs, matrix, None), cap)
        error = softmax_error(logits, labels[part])[1]
        error = error if slope is None else error * slope
        gradient += (error * upstream[part].to(error.dtype)).T @ inputs
    return gradient
