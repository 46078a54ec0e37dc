"""The delta rule and gated linear attention of flash-linear-attention (Triton) on CUDA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.hardware.execution import active_context
from synthe_core.hardware.probe import Hardware
from synthe_core.ops.delta_rule.reference import delta_rule, per_value_head
from synthe_core.ops.dispatch import Call

LARGEST_KEY = 256
RECURRENT_TIME = 16  # tokens up to which the recurrent kernel is faster


@delta_rule.kernel("fla", rank=30, tolerance=2e-2)
def fla(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Triton: queries, keys and values rounded to bfloat16, gates and memory in float32; all float32 when decoding."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule  # slow to import

    q, k = per_value_head(q, v), per_value_head(k, v)  # of all supported versions only some take fewer
    decay = torch.zeros_like(beta) if log_decay is None else log_decay
    if use_recurrent(q, k, v, beta, decay, state):
        return call_fla(fused_recurrent_gated_delta_rule, q, k, v, state, g=decay, beta=beta)
    return chunked_call(chunk_gated_delta_rule, q, k, v, state, g=decay, beta=beta)


def call_fla(
    rule: object, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, **gates: Tensor
) -> tuple[Tensor, Tensor]:
    """Calls fla's function with keyword arguments, as their order differs between versions."""
    contiguous = {name: x.contiguous() for name, x in ({"q": q, "k": k, "v": v} | gates).items()}
    memory = None if state is None else state.contiguous()
    return rule(**contiguous, scale=1.0, initial_state=memory, output_final_state=True)  # type: ignore[operator]


def even(x: Tensor) -> Tensor:
    """x [..., N], with a zero behind where N is odd: their chunked kernels of 16-bit numbers take even sizes only."""
    return F.pad(x, (0, x.shape[-1] % 2))


def chunked_call(
    rule: object, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, **gates: Tensor
) -> tuple[Tensor, Tensor]:
    """`call_fla` of a chunked kernel: q, k and v rounded to bfloat16, keys and values of even size; o as v is stored.

    Zeros behind keys and values add nothing to what is read.
    """
    key, value = k.shape[-1], v.shape[-1]
    if state is not None:
        state = F.pad(state, (0, value % 2, 0, key % 2))
    o, memory = call_fla(rule, *to_bfloat16(even(q), even(k), even(v)), state, **gates)
    return o[..., :value].to(v.dtype), memory[..., :key, :value]


def to_bfloat16(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Their chunked kernels take 16-bit inputs only, in some of the supported versions."""
    return q.to(torch.bfloat16), k.to(torch.bfloat16), v.to(torch.bfloat16)


def use_recurrent(*tensors: Tensor | None) -> bool:
    """Whether to use the recurrent kernel, which has no backward pass."""
    grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    return not grad and tensors[0] is not None and tensors[0].shape[1] <= RECURRENT_TIME


@fla.refuses
def refusal(hardware: Hardware, call: Call) -> str | None:
    """Why Triton cannot serve a call, or None."""
    if call.device != "cuda":
        return f"written for CUDA, and the tensors are on {call.device}"
    missing = [name for name in ("fla-core", "triton") if name not in hardware.libraries]
    if missing:
        return f"{' and '.join(missing)} not installed (pip install 'synthe[gpu]')"
    if call.dtype != torch.float32:
        return f"computes in float32, not {call.dtype}"
    key = call.arguments["k"].shape[-1]
    if key > LARGEST_KEY:
        return f"takes keys of up to {LARGEST_KEY} numbers, not {key}"
    if active_context().precision == "float32" and (call.grad or call.time > RECURRENT_TIME):
        return "rounds queries, keys and values to bfloat16, and the precision is float32"
    return None
