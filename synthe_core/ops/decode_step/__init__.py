"""A decoded token of each row in few launches: maps with the norm before them or the stream behind them, and the steps
of learners in place. Triton, for CUDA; `inference.in_place_step` calls it.

Everything is float32 but the weights of maps, which may be floats of any width or int8 and int4 codes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.ops.triton_launch import block, cdiv, launch

MAX_ROWS, OUTPUTS, INNER, BLOCK = 64, 16, 64, 256
"""Rows and outputs of a program's part of a map, of a step of its sum, and numbers of an elementwise program."""
MAX_HEAD = 128  # numbers of a head's keys, and of its values


class MapWeights(NamedTuple):
    """W [N, K] as floats, or as codes with scales for each `group` of columns; bits: of a code, 0 for floats."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    outputs: int
    inputs: int
    group: int = 1
    bits: int = 0

    @property
    def rows(self) -> tuple[int, int]:
        """Numbers between two rows of codes and of scales."""
        return self.weight.stride(0), 0 if self.scale is None else self.scale.stride(0)


class DeltaWeights(NamedTuple):
    """What a step of the delta rule reads beside its maps; conv [channels, taps] or None. gate: `silu`, `sigmoid` or
    `none`."""

    conv: Tensor | None
    conv_bias: Tensor | None
    A_log: Tensor | None
    dt_bias: Tensor | None
    norm: Tensor
    heads: int
    key: int
    value: int
    taps: int
    low: float
    high: float
    key_eps: float
    norm_eps: float
    scale: float
    overwrite: bool
    gate: str


def norm_maps(
    x: Tensor, norm: Tensor | None, eps: float, first: MapWeights, second: MapWeights | None = None
) -> Tensor:
    """Both maps of norm(x), side by side [B, N + M]; x [B, D]."""
    from synthe_core.ops.decode_step.triton_kernels import norm_maps as kernel

    more = first._replace(outputs=0) if second is None else second
    y = x.new_empty(len(x), first.outputs + more.outputs)
    tile = block(len(x), MAX_ROWS, 16)
    grid = (cdiv(len(x), tile), cdiv(first.outputs, OUTPUTS) + cdiv(more.outputs, OUTPUTS))
    launch(
        kernel, grid, x, x, norm, y, *first[:3], *more[:3], len(x), first.outputs, more.outputs, first.inputs,
        *first.rows, *more.rows, eps=eps, HAS_NORM=norm is not None, HAS_BIAS=first.bias is not None,
        MORE_BIAS=more.bias is not None, GROUP=first.group, BITS=first.bits, MORE_GROUP=more.group,
        MORE_BITS=more.bits, BM=tile, BN=OUTPUTS, BK=INNER,
    )  # fmt: skip
    return y


def norm_swiglu(x: Tensor, norm: Tensor | None, eps: float, gate_up: MapWeights) -> Tensor:
    """silu(W_g h) ⊙ W_u h [B, N] of h = norm(x)."""
    from synthe_core.ops.decode_step.triton_kernels import norm_swiglu as kernel

    hidden = gate_up.outputs // 2
    y, tile = x.new_empty(len(x), hidden), block(len(x), MAX_ROWS, 16)
    launch(
        kernel, (cdiv(len(x), tile), cdiv(hidden, OUTPUTS)), x, x, norm, y, *gate_up[:3], len(x), hidden,
        gate_up.inputs, *gate_up.rows, eps=eps, HAS_NORM=norm is not None, **_form(gate_up), BM=tile,
    )  # fmt: skip
    return y


def add_map(x: Tensor, y: Tensor, weights: MapWeights) -> None:
    """x += W y + b; x [B, D], y [B, K]."""
    from synthe_core.ops.decode_step.triton_kernels import add_map as kernel

    tile = block(len(x), MAX_ROWS, 16)
    launch(
        kernel, (cdiv(len(x), tile), cdiv(weights.outputs, OUTPUTS)), x, x, y, *weights[:3], len(x), weights.outputs,
        weights.inputs, *weights.rows, **_form(weights), BM=tile,
    )  # fmt: skip


def _form(weights: MapWeights) -> dict[str, Any]:
    form = {"HAS_BIAS": weights.bias is not None, "GROUP": weights.group, "BITS": weights.bits}
    return form | {"BN": OUTPUTS, "BK": INNER}


def momentum_step(projected: Tensor, bias: Tensor, average: Tensor, gated: bool) -> Tensor:
    """What the output map of `momentum` reads [B, C]; `average` [B, C] becomes that after the token."""
    from synthe_core.ops.decode_step.triton_kernels import momentum_step as kernel

    y = torch.empty_like(average)
    grid = (cdiv(y.numel(), BLOCK),)
    launch(
        kernel, grid, projected, projected, bias, average, y, y.numel(), y.shape[1], HAS_GATE=gated, BLOCK=BLOCK
    )  # fmt: skip
    return y


def kalman_step(
    projected: Tensor,
    transition_logit: Tensor,
    process_logit: Tensor,
    noise_bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    floor: float,
) -> tuple[Tensor, Tensor]:
    """What the output map of `kalman` reads [B, R], and surprise and confidence [B, 2]; mean and variance [B, R] become
    those after the token."""
    from synthe_core.ops.decode_step.triton_kernels import kalman_step as kernel

    y, signals = torch.empty_like(mean), mean.new_empty(len(mean), 2)
    launch(
        kernel, (len(mean),), mean, projected, transition_logit, process_logit, noise_bias, mean, variance, y, signals,
        mean.shape[1], floor=floor, BLOCK=BLOCK,
    )  # fmt: skip
    return y, signals


def delta_step(projected: Tensor, memory: Tensor, past: Tensor, own: DeltaWeights) -> Tensor:
    """What the output map of `delta` reads [B, H V]; memory [B, H, K, V] and past [B, taps - 1, H (2 K + V)] become
    those after the token."""
    from synthe_core.ops.decode_step.triton_kernels import delta_step as kernel

    y = projected.new_empty(len(memory), own.heads * own.value)
    blocks = {"BK": block(own.key, MAX_HEAD), "BV": block(own.value, MAX_HEAD)}
    launch(
        kernel, (len(memory), own.heads), memory, projected, past, own.conv, own.conv_bias, own.A_log, own.dt_bias,
        own.norm, memory, y, projected.shape[1], own.heads, own.key, own.value,
        low=own.low, high=own.high, key_eps=own.key_eps, norm_eps=own.norm_eps, scale=own.scale,
        OVERWRITE=own.overwrite, DECAY=own.A_log is not None, SILU=own.gate == "silu", SIGMOID=own.gate == "sigmoid",
        HAS_BIAS=own.conv_bias is not None, TAPS=own.taps, **blocks,
        num_warps=8 if blocks["BK"] * blocks["BV"] > 4096 else 4,
    )  # fmt: skip
    return y
