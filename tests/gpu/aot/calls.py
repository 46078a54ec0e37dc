"""The calls whose kernels are compiled ahead of time: ours, forward and back, and fla's as the project calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from synthe_core.ops.decode_step import (
    DeltaWeights,
    MapWeights,
    add_map,
    delta_step,
    kalman_step,
    momentum_step,
    norm_maps,
    norm_swiglu,
)
from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.gated_average import gated_average
from synthe_core.ops.kalman_filter import kalman_filter
from synthe_core.ops.linear_attention import linear_attention
from synthe_core.ops.linear_scan import linear_scan
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.rotary import rotary
from synthe_core.ops.selective_scan import selective_scan
from synthe_core.ops.short_conv import short_conv
from synthe_core.ops.silu_gate import silu_gate
from synthe_core.ops.slot_memory import Policy, slot_memory
from synthe_core.ops.softmax_error import softmax_error
from synthe_core.ops.span_memory import span_memory
from synthe_core.ops.swiglu import swiglu
from synthe_core.ops.triton_maximum import triton_running_maximum
from synthe_core.ops.triton_quantized import triton_product
from synthe_core.quantization.quantize import quantize

BATCH, TIME, WIDTH = 2, 256, 512


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def pass_through(op: Any, kernel: str, *arguments: Any) -> None:
    """The kernels of a training pass. Nothing is computed, so all numbers may be zero."""
    outputs = op.named(kernel)(*arguments)
    leaves = [x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if x.requires_grad]
    if leaves:
        torch.autograd.backward(leaves, [torch.zeros_like(x) for x in leaves])


def scans(op: Any) -> None:
    for time in (1, TIME):
        pass_through(op, "triton", zeros(BATCH, time, WIDTH), zeros(BATCH, time, WIDTH), zeros(BATCH, WIDTH))


def kalman() -> None:
    for time in (1, TIME):
        tokens = (BATCH, time, WIDTH)
        active = torch.ones(BATCH, time, dtype=torch.bool)
        model = zeros(WIDTH), zeros(WIDTH)
        first = zeros(BATCH, WIDTH), zeros(BATCH, WIDTH)
        pass_through(kalman_filter, "triton", zeros(*tokens), *model, zeros(*tokens), *first, active)


def selective() -> None:
    for time, size in ((1, 16), (TIME, 16), (TIME, 64), (TIME, 128)):
        tokens, shared = (BATCH, time, WIDTH), (BATCH, time, size)
        parameters = zeros(WIDTH, size), zeros(*shared), zeros(*shared), zeros(WIDTH)
        pass_through(selective_scan, "triton", zeros(*tokens), zeros(*tokens), *parameters, zeros(BATCH, WIDTH, size))


def convolution() -> None:
    for time in (1, TIME):
        tokens = zeros(BATCH, time, WIDTH)
        pass_through(short_conv, "triton", tokens, zeros(WIDTH, 4), zeros(BATCH, 3, WIDTH), True, zeros(WIDTH))


def norms() -> None:
    for width in (64, WIDTH, 4096):
        pass_through(rms_norm, "triton", zeros(BATCH, TIME, width), zeros(width), 1e-5, torch.bfloat16)


def gates() -> None:
    pass_through(swiglu, "triton", zeros(BATCH, TIME, 4 * WIDTH, dtype=torch.bfloat16))
    pass_through(
        silu_gate, "triton", zeros(BATCH, TIME, WIDTH), zeros(BATCH, TIME, WIDTH, dtype=torch.bfloat16)
    )  # fmt: skip


def positions() -> None:
    angles = torch.zeros(BATCH, TIME, 32)
    pass_through(rotary, "triton", zeros(BATCH, TIME, 8, 64, dtype=torch.bfloat16), angles, angles, 1e-5)


def loss() -> None:
    with torch.no_grad():
        logits = torch.zeros(64, 32000, dtype=torch.bfloat16)
        softmax_error.named("triton")(logits, torch.zeros(64, dtype=torch.int64))


def maximum() -> None:
    gates = torch.zeros(BATCH, TIME, 8)
    triton_running_maximum(gates, gates, gates[:, 0])


def memories(op: Any) -> None:
    for key, value in ((64, 64), (128, 128), (256, 64)):
        heads = (BATCH, 64, 4)
        vectors = zeros(*heads, key), zeros(*heads, key), zeros(*heads, value)
        pass_through(op, "triton", *vectors, zeros(*heads), zeros(*heads), zeros(BATCH, 4, key, value))


def spans() -> None:
    for size in (16, 32):
        heads, square = (BATCH, 64, 4), (BATCH, 4, size, size)
        finished = torch.arange(64).expand(BATCH, -1) % 16 == 0
        tokens = zeros(*heads, size), zeros(*heads, size), zeros(*heads, size), zeros(*heads), zeros(4)
        state = zeros(*square), zeros(*square), zeros(BATCH, 4, size, 2 * size), zeros(BATCH, 4, 3)
        output = span_memory.named("triton")(
            *tokens, zeros(*heads), zeros(*heads), zeros(BATCH, 64), finished, *state, 16
        )
        leaves = [output.read, output.error, output.rate, *output.state]
        torch.autograd.backward(leaves, [torch.zeros_like(x) for x in leaves])


def slots() -> None:
    for count, chunk, router, seed in ((1024, 32, "softmax", None), (64, 64, "sparsemax", 1), (2048, 32, "softmax", 1)):
        vectors, record = (BATCH, 64, 4, 32), (4, 64)
        tokens = zeros(*vectors), zeros(*vectors), zeros(*vectors), zeros(BATCH, 64)
        bank, pending = zeros(BATCH, count, *record), zeros(BATCH, chunk, *record)
        start = torch.zeros(BATCH, dtype=torch.int64)
        policy = Policy(8, 8, 0.5, 1000.0, 1.0, router)  # type: ignore[arg-type]
        output = slot_memory.named("triton")(
            *tokens, bank, torch.zeros(BATCH, count, 4), pending, zeros(BATCH, chunk), start, start, policy, seed
        )
        leaves = [output.read, output.weights, output.bank, output.pending, output.pending_strength]
        torch.autograd.backward(leaves, [torch.zeros_like(x) for x in leaves])


def quantized() -> None:
    for name in ("int8", "int4"):
        matrix = quantize(torch.randn(256, 512), name)
        for dtype in (torch.float32, torch.bfloat16):
            for transposed, size in ((False, 512), (True, 256)):
                triton_product(torch.zeros(64, size, dtype=dtype), matrix, None, transposed)  # type: ignore[arg-type]


def decode() -> None:
    """A token of the blocks of 60m-flat, with floats of 32 and 16 bits and with codes."""
    rows, width, heads = 2, 512, 8
    x, norm = torch.zeros(rows, width), torch.zeros(width)
    for dtype in (torch.float32, torch.bfloat16, "int8", "int4"):
        for outputs, inputs in ((3 * width, width), (width, width), (4 * width, width), (width, 2 * width)):
            if isinstance(dtype, str):
                matrix = quantize(torch.randn(outputs, inputs), dtype)
                codes, scale, form = matrix.get_buffer("codes"), matrix.get_buffer("scale"), matrix.form  # type: ignore[attr-defined]
                weights = MapWeights(codes, scale, None, outputs, inputs, form.group, form.bits)
            else:
                weights = MapWeights(torch.zeros(outputs, inputs, dtype=dtype), None, None, outputs, inputs)
            if inputs == width:
                norm_maps(x, norm, 1e-6, weights, weights)
                norm_swiglu(x, norm, 1e-6, weights)
            if outputs == width:
                add_map(x, torch.zeros(rows, inputs), weights)
    momentum_step(torch.zeros(rows, 3 * width), norm, x.clone(), True)
    kalman_step(torch.zeros(rows, 3 * width), norm, norm, norm, x.clone(), x.clone(), 1e-6)
    for key in (64, 128):
        channels, values = 3 * heads * key, heads * key
        own = DeltaWeights(
            torch.zeros(channels, 4), None, torch.zeros(heads), torch.zeros(heads), torch.zeros(key), heads, key, key,
            4, 0.0, 1.0, 1e-5, 1e-5, 1.0, True, "silu",
        )  # fmt: skip
        projected = torch.zeros(rows, channels + values + 2 * heads)
        delta_step(projected, torch.zeros(rows, heads, key, key), torch.zeros(rows, 3, channels), own)


OURS: dict[str, Callable[[], None]] = {
    "linear_scan": lambda: scans(linear_scan),
    "gated_average": lambda: scans(gated_average),
    "kalman_filter": kalman,
    "selective_scan": selective,
    "short_conv": convolution,
    "rms_norm": norms,
    "gates": gates,
    "rotary": positions,
    "softmax_error": loss,
    "running_maximum": maximum,
    "delta_rule": lambda: memories(delta_rule),
    "linear_attention": lambda: memories(linear_attention),
    "slot_memory": slots,
    "span_memory": spans,
    "quantized_linear": quantized,
    "decode_step": decode,
}


def fla(name: str) -> Callable[[], None]:
    """A training pass and a step of decoding by fla's kernels of that operator."""

    def call() -> None:
        from tests.gpu.interpreter.check_fla import RULES

        op, make = next((op, make) for op, make in RULES if op.name == name)
        arguments = make((BATCH, 128, 2, 64, 64))
        leaves = [x.requires_grad_() if isinstance(x, Tensor) else x for x in arguments.values()]
        pass_through(op, "fla", *leaves)
        with torch.no_grad():
            op.named("fla")(*make((BATCH, 1, 2, 64, 64)).values())

    return call


FLA = {name: fla(name) for name in ("delta_rule", "linear_attention", "kda", "generalized_delta_rule")}
