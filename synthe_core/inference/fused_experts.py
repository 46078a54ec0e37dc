"""A mixture of experts as the C of `FusedDecoder` is given it: its choice, its matrices and its shared expert."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor, nn

from synthe_core.adapters.lora_linear import LoRALinear
from synthe_core.inference.fused_maps import matrices_of
from synthe_core.ops.fused_decode import ACTIVATIONS, LinearMap, SharedExpert, Step
from synthe_core.quantization.matrix import StackedMatrix
from synthe_core.quantization.packed import BLOCK, LANES, PackedMatrix


def experts_refusal(learner: Any) -> str | None:
    """Why an `Experts` cannot be run in C, or None."""
    own, pool = learner.config, learner.pool
    if own.latent is not None:
        return "experts with a latent"
    shared = _shared_maps(pool)
    if any(isinstance(each, LoRALinear) for each in (pool.inputs, pool.out, *shared)):
        return "an adapter changes experts"
    if any(matrices_of(each) is None for each in shared):
        return "a map has weights that C does not multiply"
    first, second = (getattr(each, "matrix", None) for each in (pool.inputs, pool.out))
    if isinstance(first, StackedMatrix) or isinstance(second, StackedMatrix):
        return "the experts' matrices have several formats"
    rows, columns = pool.inputs.out_features // own.experts, pool.out.in_features // own.experts
    if (isinstance(first, PackedMatrix) and rows % LANES) or (isinstance(second, PackedMatrix) and columns % BLOCK):
        return "an expert's matrices are no whole groups of a packed one"
    return None


def fill_experts(step: Step, learner: Any) -> list[Tensor]:
    own, pool, rule = learner.config, learner.pool, step.experts
    rule.experts, rule.top, rule.hidden = own.experts, own.top_k, pool.out.in_features // own.experts
    rule.groups, rule.top_groups = own.groups, own.top_groups
    rule.activation, rule.is_gated, rule.scale = ACTIVATIONS[own.activation], own.gated, own.weight_scale
    rule.is_sigmoid, rule.is_normalized = own.scores == "sigmoid", pool.routing.normalize
    rule.room = pool.inputs.out_features // own.experts + pool.out.out_features
    if pool.shared is not None:
        shared = SharedExpert(*(_map(each) for each in _shared_maps(pool)))
        rule.shared = ctypes.pointer(shared)
        rule.room = max(rule.room, shared.input.outputs + shared.output.inputs + shared.output.outputs + 1)
    if own.bias_rate is None:
        return []
    bias = pool.routing.bias.float().contiguous()
    rule.bias = bias.data_ptr()
    return [bias]


def _shared_maps(pool: Any) -> list[nn.Module]:
    """Of the expert that every token uses: into it, out of it, and its gate's."""
    if pool.shared is None:
        return []
    inputs = pool.shared.gate_up if pool.shared.config.gated else pool.shared.up
    return [inputs, pool.shared.out] + ([] if pool.shared_gate is None else [pool.shared_gate])


def _map(module: Any) -> LinearMap:
    parts = matrices_of(module)
    assert parts is not None
    return LinearMap.of(parts, module.bias)
