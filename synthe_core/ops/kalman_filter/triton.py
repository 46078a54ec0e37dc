"""The Kalman filter in Triton: two kernels forward and one back, whatever the length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call
from synthe_core.ops.kalman_filter.reference import Filtered, check, kalman_filter
from synthe_core.ops.triton_launch import RANK, block, cdiv, launch, mixed_types, refusal

CHANNELS, TILE = 32, 32  # of a program, and tokens that it scans at a time
SIGNAL_CHANNELS, SIGNAL_TOKENS = 128, 8


@kalman_filter.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(
    observation: Tensor,
    transition: Tensor,
    process_noise: Tensor,
    observation_noise: Tensor,
    mean: Tensor,
    variance: Tensor,
    active: Tensor | None = None,
) -> Filtered:
    """Triton: a scan of Möbius maps and one of means; back, one scan of both adjoints."""
    check(observation, transition, process_noise)
    return Filtered(*_Filter.apply(observation, transition, process_noise, observation_noise, mean, variance, active))


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return refusal(hardware, call) or mixed_types(call)


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Tensor | None) -> tuple[Tensor, ...]:
        from synthe_core.ops.kalman_filter.triton_kernels import filter_forward, filter_signals

        inputs = [None if tensor is None else tensor.contiguous() for tensor in arguments]
        observation, active = inputs[0], inputs[-1]
        assert observation is not None
        batch, time, width = observation.shape
        means, variances = torch.empty_like(observation), torch.empty_like(observation)
        signals = observation.new_empty(2, batch, time)
        sizes = (time, width, *_strides(inputs[1], time), *_strides(inputs[2], time))
        launch(
            filter_forward, (batch, cdiv(width, CHANNELS)), observation, *inputs, means, variances, *sizes,
            HAS_ACTIVE=active is not None, BT=block(time, TILE, 2), BD=CHANNELS,
        )  # fmt: skip
        tokens = block(time, SIGNAL_TOKENS)
        launch(
            filter_signals, (batch, cdiv(time, tokens)), observation, *inputs, means, variances, signals, *sizes,
            HAS_ACTIVE=active is not None, BT=tokens, BD=block(width, SIGNAL_CHANNELS),
        )  # fmt: skip
        ctx.save_for_backward(*inputs, means, variances)
        ctx.set_materialize_grads(False)
        return means, variances, *signals.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        from synthe_core.ops.kalman_filter.triton_kernels import filter_backward

        *inputs, means, variances = ctx.saved_tensors
        observation, transition, process_noise, _, mean, variance, active = inputs
        batch, time, width = observation.shape
        given = [None if grad is None else grad.contiguous() for grad in grads]
        per_token = [tensor.dim() == 3 for tensor in (transition, process_noise)]
        parameters = [observation.new_empty(observation.shape if each else (batch, width)) for each in per_token]
        results = [torch.empty_like(observation), *parameters, torch.empty_like(observation)]
        results += [torch.empty_like(mean), torch.empty_like(variance)]
        flags = ("MEAN", "VARIANCE", "SURPRISE", "CONFIDENCE")
        launch(
            filter_backward, (batch, cdiv(width, CHANNELS)), observation, *inputs, means, variances, *given, *results,
            time, width, *_strides(transition, time), *_strides(process_noise, time),
            HAS_ACTIVE=active is not None, A_TOKENS=per_token[0], Q_TOKENS=per_token[1],
            **{f"HAS_{name}": grad is not None for name, grad in zip(flags, given, strict=True)},
            BT=block(time, TILE, 2), BD=CHANNELS,
        )  # fmt: skip
        for index, each in enumerate(per_token):
            if not each:
                results[1 + index] = results[1 + index].sum(0)
        return *results, None


def _strides(parameter: Tensor | None, time: int) -> tuple[int, int]:
    """Numbers from one row of the batch, and from one token, to the next; 0 for a parameter of all tokens."""
    assert parameter is not None
    width = parameter.shape[-1]
    return (time * width, width) if parameter.dim() == 3 else (0, 0)
