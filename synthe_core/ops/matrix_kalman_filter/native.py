"""The Kalman filter with a full covariance compiled for the CPU: sixteen heads at once, the gradient by hand."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call
from synthe_core.ops.matrix_kalman_filter.reference import MatrixFiltered, check, matrix_kalman_filter
from synthe_core.ops.native import function, pointer, refusal

SOURCE = "matrix_kalman_filter/matrix_kalman_filter.c"
MAX_SIZE = 16  # of the C code's local arrays


@matrix_kalman_filter.kernel("native", rank=20, tolerance=1e-4, batch_invariant=("cpu",))
def native(
    precision: Tensor,
    information: Tensor,
    transition: Tensor,
    process_noise: Tensor,
    mean: Tensor,
    covariance: Tensor,
    active: Tensor | None = None,
) -> MatrixFiltered:
    """C: two Cholesky factors a head and token, in vectors over heads."""
    check(precision, information, transition)
    arguments = (precision, information, transition, process_noise, mean, covariance, active)
    return MatrixFiltered(*_Native.apply(*arguments))


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    size = call.arguments["transition"].shape[-1]
    if size > MAX_SIZE:
        return f"covariances of up to {MAX_SIZE} x {MAX_SIZE}, and these are {size} x {size}"
    return refusal(hardware, call.device, SOURCE)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs = [None if tensor is None else tensor.contiguous() for tensor in arguments]
        precision, information, *_ = inputs
        assert precision is not None and information is not None
        means, covariances = torch.empty_like(information), torch.empty_like(precision)
        _call("filter", [*inputs, means, covariances], information)
        ctx.save_for_backward(*inputs, means, covariances)
        ctx.set_materialize_grads(False)
        return means, covariances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, means, covariances = ctx.saved_tensors
        precision, information, transition, _, mean, covariance, _ = inputs
        rows = information.shape[0]
        output_grads = [None if grad is None else grad.contiguous() for grad in grads]
        of_parameters = [transition.new_zeros(rows, *transition.shape) for _ in range(2)]
        results = [torch.empty_like(x) for x in (precision, information, mean, covariance)]
        of_precision, of_information, of_mean, of_covariance = results
        out = [of_precision, of_information, *of_parameters, of_mean, of_covariance]
        _call("filter_back", [*inputs, means, covariances, *output_grads, *out], information)
        of_transition, of_process = (each.sum(0) for each in of_parameters)
        return of_precision, of_information, of_transition, of_process, of_mean, of_covariance, None


def _call(name: str, tensors: list[Tensor | None], like: Tensor) -> None:
    sizes = [ctypes.c_int64(size) for size in like.shape]
    function(SOURCE, name, like.dtype)(*map(pointer, tensors), *sizes)
