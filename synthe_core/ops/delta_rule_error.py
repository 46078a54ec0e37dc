"""The delta rule with its errors as an output: each token's value less the memory's prediction at its key."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from synthe_core.ops.delta_rule.chunked import chunked_memory
from synthe_core.ops.delta_rule.chunked import refusal as chunk_refusal
from synthe_core.ops.delta_rule.fla import fla as fla_rule
from synthe_core.ops.delta_rule.fla import refusal as fla_refusal
from synthe_core.ops.delta_rule.native import compiled_memory
from synthe_core.ops.delta_rule.native import refusal as native_refusal
from synthe_core.ops.delta_rule.reference import per_value_head
from synthe_core.ops.dispatch import op, require_float
from synthe_core.ops.eager import eager


@op(batch_invariant=("cpu",))
def delta_rule_error(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`delta_rule`, and e_t = v_t - α_t S_{t-1} k_t [B, T, H, V]: the error at each token, before β scales it.

    Arguments and the first two results are those of `delta_rule`.
    """
    require_float("q", q)
    q, k = per_value_head(q, v), per_value_head(k, v)
    batch, time, heads, key = q.shape
    memory = q.new_zeros(batch, heads, key, v.shape[-1]) if state is None else state
    outputs, errors = [], []
    for t in range(time):
        if log_decay is not None:
            memory = memory * log_decay[:, t, :, None, None].exp()
        error = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], memory)
        memory = memory + k[:, t, :, :, None] * (beta[:, t, :, None] * error)[:, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory))
        errors.append(error)
    return torch.stack(outputs, 1), memory, torch.stack(errors, 1)


def read_before(
    rule: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """By a `rule` without errors as an output: every token twice, first only to decay the memory and read it at k."""

    def twice(first: Tensor, then: Tensor) -> Tensor:
        return torch.stack([first, then], 2).flatten(1, 2)

    decay = None if log_decay is None else twice(log_decay, torch.zeros_like(log_decay))
    seen, memory = rule(twice(k, q), twice(k, k), twice(v, v), twice(torch.zeros_like(beta), beta), decay, state)
    recalled, out = seen.unflatten(1, (-1, 2)).unbind(2)
    return out, memory, v - recalled


@delta_rule_error.kernel("fla", rank=30, tolerance=2e-2)
def fla(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Triton, through the delta rule's kernel: twice the tokens, as it does not return its errors."""
    return read_before(fla_rule, q, k, v, beta, log_decay, state)


fla.refuses(fla_refusal)


@delta_rule_error.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
@eager
def compiled(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compiled C: the delta rule's own errors."""
    return compiled_memory(q, k, v, beta, log_decay, state, True, True)


compiled.refuses(native_refusal)


@delta_rule_error.kernel("chunked", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Torch: chunks of 64 tokens, the delta rule's own errors."""
    return chunked_memory(q, k, v, beta, log_decay, state, True, True)


chunked.refuses(chunk_refusal)
