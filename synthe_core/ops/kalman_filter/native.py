"""The Kalman filter compiled for the CPU: mean and variance in one pass over memory, all gradients in another."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call
from synthe_core.ops.kalman_filter.reference import Filtered, check, kalman_filter
from synthe_core.ops.native import function, library, pointer, refusal

SOURCE = "kalman_filter/kalman_filter.c"


class _Stride(ctypes.Structure):
    """Elements from one row of the batch, and from one token, to the next."""

    _fields_ = [("row", ctypes.c_int64), ("token", ctypes.c_int64)]


@kalman_filter.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
def native(
    observation: Tensor,
    transition: Tensor,
    process_noise: Tensor,
    observation_noise: Tensor,
    mean: Tensor,
    variance: Tensor,
    active: Tensor | None = None,
) -> Filtered:
    """C: one division a channel and token."""
    check(observation, transition, process_noise)
    arguments = (observation, transition, process_noise, observation_noise, mean, variance, active)
    return Filtered(*_Native.apply(*arguments))


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return refusal(hardware, call.device, SOURCE)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Tensor | None) -> tuple[Tensor, ...]:
        inputs = [None if tensor is None else tensor.contiguous() for tensor in arguments]
        observation, transition, process_noise, *_ = inputs
        assert observation is not None and transition is not None and process_noise is not None
        batch, time, width = observation.shape
        means, posterior = torch.empty_like(observation), torch.empty_like(observation)
        block = ctypes.c_int64.in_dll(library(SOURCE), "channels_a_task").value
        signals = observation.new_empty(2, -(-width // block), batch, time)  # each block of channels sums by itself
        strides = _stride(transition, time), _stride(process_noise, time)
        _call("filter", observation, [*inputs, means, posterior, signals[0], signals[1]], strides)
        ctx.save_for_backward(*inputs, means, posterior)
        ctx.set_materialize_grads(False)
        surprise, confidence = signals.sum(1).div_(width).unbind()
        return means, posterior, surprise, confidence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, means, posterior = ctx.saved_tensors
        observation, transition, process_noise, _, mean, variance, _ = inputs
        batch, time, width = observation.shape
        output_grads = [None if grad is None else grad.contiguous() for grad in grads]
        output_grads[2:] = [None if grad is None else grad / width for grad in output_grads[2:]]
        shapes = [(batch, width) if tensor.dim() == 1 else tensor.shape for tensor in (transition, process_noise)]
        of_transition, of_process = (observation.new_zeros(shape) for shape in shapes)
        of_observation, of_noise = torch.empty_like(observation), torch.empty_like(observation)
        of_mean, of_variance = torch.empty_like(mean), torch.empty_like(variance)
        results = [of_observation, of_transition, of_process, of_noise, of_mean, of_variance]
        strides = [_stride(tensor, time) for tensor in (transition, process_noise)]
        strides += [
            _Stride(tensor.stride(0), width if tensor.dim() == 3 else 0) for tensor in (of_transition, of_process)
        ]
        _call("filter_back", observation, [*inputs, means, posterior, *output_grads, *results], strides)
        results[1], results[2] = (
            of_transition.sum_to_size(transition.shape),
            of_process.sum_to_size(process_noise.shape),
        )
        return *results, None


def _stride(parameter: Tensor, time: int) -> _Stride:
    width = parameter.shape[-1]
    return _Stride(time * width, width) if parameter.dim() == 3 else _Stride(0, 0)


def _call(name: str, like: Tensor, tensors: list[Tensor | None], strides: Any) -> None:
    sizes = [ctypes.c_int64(size) for size in like.shape]
    function(SOURCE, name, like.dtype)(*map(pointer, tensors), *sizes, *strides)
