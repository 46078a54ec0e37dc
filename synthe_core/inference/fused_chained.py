"""The learners whose maps read what other maps or a convolution have made, as the C of `FusedDecoder` is given them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.layers.rg_lru import SHARPNESS
from synthe_core.ops.activations import softplus
from synthe_core.ops.fused_decode import ACTIVATIONS, Convolution, Step
from synthe_core.ops.native import pointer


def fill_convolution(target: Convolution, weight: Tensor | None, bias: Tensor | None) -> list[Tensor]:
    """weight [channels, taps], or none."""
    target.taps, target.bias = 1 if weight is None else weight.shape[1], pointer(bias)
    if weight is None:
        return []
    turned = weight.t().contiguous()
    target.weight = turned.data_ptr()
    return [turned]


def mamba_maps(learner: Any) -> Sequence[nn.Module]:
    return learner.x_proj, learner.dt_proj


def fill_mamba(step: Step, learner: Any) -> list[Tensor]:
    own, rule = learner.config, step.mamba
    rates = learner.A_log.exp()
    rule.rate, rule.skip = rates.data_ptr(), learner.D.data_ptr()
    if own.bc_dt_norm == "weighted":
        norms = learner.dt_layernorm, learner.b_layernorm, learner.c_layernorm
        rule.dt_norm, rule.b_norm, rule.c_norm = (each.weight.data_ptr() for each in norms)
    rule.is_normed, rule.norm_eps = bool(own.bc_dt_norm), own.norm_eps
    rule.channels, rule.size, rule.rank = learner.channels, own.state_size, learner.rank
    step.room, step.most = 2 * learner.rank + 2 * own.state_size + learner.channels, learner.channels
    conv = learner.conv1d
    return [rates, *fill_convolution(rule.conv, conv.weight[:, 0], conv.bias)]


def kda_maps(learner: Any) -> Sequence[nn.Module]:
    return learner.decay, learner.gate


def fill_kda(step: Step, learner: Any) -> list[Tensor]:
    own, rule = learner.config, step.kda
    unit, rates = torch.full((learner.key,), learner.key**-0.5), learner.A_log.exp()
    rule.unit, rule.norm, rule.rate = unit.data_ptr(), learner.norm.data_ptr(), rates.data_ptr()
    rule.dt_bias, rule.gate_bias = learner.dt_bias.data_ptr(), pointer(learner.gate_bias)
    rule.low, rule.high = own.beta_range
    rule.floor, rule.key_eps, rule.norm_eps = own.decay_floor or 0.0, own.key_norm_eps / learner.key, own.norm_eps
    rule.heads, rule.groups, rule.key, rule.value = own.heads, learner.groups, learner.key, learner.value
    rule.rank = rank = learner.features[1]
    step.room, step.most = learner.groups * (learner.key + learner.value) + rank, rank
    conv = learner.conv1d
    weights = (None, None) if conv is None else (conv.weight[:, 0], conv.bias)
    return [unit, rates, *fill_convolution(rule.conv, *weights)]


def rg_lru_refusal(learner: Any) -> str | None:
    blocks = learner.input_gate_weight, learner.recurrent_gate_weight
    return None if all(each.is_contiguous() for each in blocks) else "the gates' matrices have another layout"


def fill_rg_lru(step: Step, learner: Any) -> list[Tensor]:
    own, rule = learner.config, step.rg_lru
    rates = SHARPNESS * softplus(learner.recurrent_param)
    rule.write, rule.write_bias = learner.input_gate_weight.data_ptr(), learner.input_gate_bias.data_ptr()
    rule.keep, rule.keep_bias = learner.recurrent_gate_weight.data_ptr(), learner.recurrent_gate_bias.data_ptr()
    rule.rate, rule.channels, rule.heads = rates.data_ptr(), learner.channels, own.heads
    rule.activation = ACTIVATIONS[own.activation]
    conv = learner.conv_1d
    return [rates, *fill_convolution(rule.conv, conv.weight[:, 0], conv.bias)]


def rwkv7_maps(learner: Any) -> Sequence[nn.Module]:
    maps = [
        *(learner.key, learner.value, learner.decay_in, learner.decay_out),
        *(learner.rate_in, learner.rate_out, learner.gate_in, learner.gate_out),
    ]
    return [*maps, learner.value_in, learner.value_out] if learner.config.values == "mix" else maps


def fill_rwkv7(step: Step, learner: Any) -> list[Tensor]:
    own, rule, width = learner.config, step.rwkv7, learner.width
    size = own.head_size
    unit = torch.full((size,), size**-0.5)
    rule.mix, rule.unit = learner.mix.data_ptr(), unit.data_ptr()
    rule.decay_bias, rule.rate_bias = learner.decay_bias.data_ptr(), learner.rate_bias.data_ptr()
    rule.k_k, rule.k_a, rule.r_k = learner.k_k.data_ptr(), learner.k_a.data_ptr(), learner.r_k.data_ptr()
    rule.norm, rule.norm_bias = learner.norm.data_ptr(), learner.norm_bias.data_ptr()
    rule.key_eps, rule.norm_eps = own.key_norm_eps / size, own.norm_eps * size
    rule.heads, rule.size = learner.heads, size
    rule.shares, rule.mixes = own.values == "share", own.values == "mix"
    if own.values == "mix":
        rule.value_bias = learner.value_bias.data_ptr()
    narrowing: Sequence[Any] = rwkv7_maps(learner)[2::2]
    ranks = [each.out_features for each in narrowing]
    step.most, step.room = max(width, *ranks), 8 * width + max(ranks)  # beside a width of the first map's outputs
    return [unit]
