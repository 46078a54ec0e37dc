"""The learners with a state of fixed size that `FusedDecoder` runs: what C is given of them, and their states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synthe_core.inference.fused_buffers import StateBuffers
from synthe_core.inference.fused_chained import (
    fill_convolution,
    fill_kda,
    fill_mamba,
    fill_rg_lru,
    fill_rwkv7,
    kda_maps,
    mamba_maps,
    rg_lru_refusal,
    rwkv7_maps,
)
from synthe_core.inference.fused_experts import experts_refusal, fill_experts
from synthe_core.layers.delta import Delta, DeltaState
from synthe_core.layers.experts import Experts
from synthe_core.layers.gated_conv import GatedConv
from synthe_core.layers.gla import GLA, GLAState
from synthe_core.layers.kalman import MIN_NOISE, Kalman, KalmanState
from synthe_core.layers.kda import KDA, KDAState
from synthe_core.layers.mamba import Mamba, MambaState
from synthe_core.layers.mamba2 import Mamba2
from synthe_core.layers.mlstm import MLSTM, MLSTMState
from synthe_core.layers.momentum import Momentum, MomentumState
from synthe_core.layers.rg_lru import RGLRU, RGLRUState
from synthe_core.layers.rwkv7 import RWKV7, RWKV7State
from synthe_core.ops.activations import sigmoid, softplus
from synthe_core.ops.fused_decode import (
    DELTA,
    EXPERTS,
    GATED_CONV,
    KALMAN,
    MAMBA2,
    MOMENTUM,
    NO_GATE,
    RG_LRU,
    SIGMOID_GATE,
    SILU_GATE,
    Step,
)
from synthe_core.ops.fused_decode import GLA as FUSED_GLA
from synthe_core.ops.fused_decode import KDA as FUSED_KDA
from synthe_core.ops.fused_decode import MAMBA as FUSED_MAMBA
from synthe_core.ops.fused_decode import MLSTM as FUSED_MLSTM
from synthe_core.ops.fused_decode import RWKV7 as FUSED_RWKV7

GATES = {"silu": SILU_GATE, "sigmoid": SIGMOID_GATE}


class Form(NamedTuple):
    """How a type of learner is run. refusal: why one of it cannot be, or None; maps: of its input, of its gates where
    those are made apart, and of its output; fill: what of a step is the same in every pass, with the tensors whose
    addresses C has; state: its leaves, as a state."""

    kind: int
    refusal: Callable[[Any], str | None]
    maps: Callable[[Any], tuple[nn.Module, nn.Module | None, nn.Module]]
    fill: Callable[[Step, Any], list[Tensor]]
    state: Callable[..., Any]
    others: Callable[[Any], Sequence[nn.Module]] = lambda learner: ()


def begin(
    step: Step, state: Iterable[Tensor] | Tensor, made: Callable[..., Any], buffers: StateBuffers
) -> tuple[Any, list[Tensor]]:
    """The state that C will fill, and the tensors it has the addresses of. state: its leaves, or the only one."""
    before = [leaf.contiguous() for leaf in ([state] if isinstance(state, Tensor) else state)]
    after = [buffers.empty_like(leaf) for leaf in before]
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        step.before[number], step.after[number] = old.data_ptr(), new.data_ptr()
    return made(*after), before


class StateRows(NamedTuple):
    """The states of one sequence before and after each of its next tokens, of each leaf a row below the other; and
    what makes a state of leaves."""

    leaves: list[Tensor]
    made: Callable[..., Any]

    def state(self, count: int) -> Any:
        """The state after the first `count` tokens."""
        return self.made(*(leaf[count : count + 1].clone() for leaf in self.leaves))


def begin_rows(step: Step, state: Iterable[Tensor] | Tensor, made: Callable[..., Any], count: int) -> StateRows:
    """Where C will write the states after `count` tokens of one sequence: each token reads the row before its own."""
    leaves = []
    for number, leaf in enumerate([state] if isinstance(state, Tensor) else state):
        rows = leaf.new_empty(count + 1, *leaf.shape[1:])
        rows[:1] = leaf
        leaves.append(rows)
        step.before[number], step.after[number] = rows.data_ptr(), rows[1:].data_ptr()
    return StateRows(leaves, made)


def _fill_momentum(step: Step, learner: Any) -> list[Tensor]:
    step.bias = learner.decay_bias.data_ptr()
    return []


def _kalman_refusal(learner: Any) -> str | None:
    if learner.config.covariance is not None:
        return "a kalman has a covariance"
    return None if learner.config.every == 1 else "a kalman does not measure every token"


def _fill_kalman(step: Step, learner: Any) -> list[Tensor]:
    parameters = [sigmoid(learner.transition_logit), softplus(learner.process_logit) + MIN_NOISE]
    step.kalman.transition, step.kalman.process = (each.data_ptr() for each in parameters)
    step.kalman.noise_bias = learner.noise_bias.data_ptr()
    return parameters


def _delta_refusal(learner: Any) -> str | None:
    own = learner.config
    if own.householder > 1 or own.clip is not None or own.signals:
        return "a delta has several steps a token, a clip or signals"
    return None


def _fill_delta(step: Step, learner: Any) -> list[Tensor]:
    own, rule = learner.config, step.delta
    tensors = [learner.unit, own.scale * learner.norm]
    rule.unit, rule.norm = (each.data_ptr() for each in tensors)
    tensors += fill_convolution(rule.conv, learner.conv if learner.taps > 1 else None, learner.conv_bias)
    if own.decay:
        tensors.append(learner.A_log.exp())
        rule.rate, rule.rate_bias = tensors[-1].data_ptr(), learner.dt_bias.data_ptr()
    rule.low, rule.high = own.beta_range
    rule.key_eps, rule.norm_eps = own.key_norm_eps / learner.key, own.norm_eps / own.query_scale**2
    rule.heads, rule.value_heads, rule.key, rule.value = own.heads, learner.value_heads, learner.key, learner.value
    rule.overwrites, rule.gate = own.overwrite, GATES[own.gate_function] if own.gate else NO_GATE
    return tensors


def _fill_gla(step: Step, learner: Any) -> list[Tensor]:
    own, rule = learner.config, step.gla
    rule.norm, rule.norm_eps = learner.norm.data_ptr(), own.norm_eps * learner.key  # of o / √K
    rule.temperature, rule.floor = own.temperature, -math.inf if own.decay_floor is None else own.decay_floor
    rule.heads, rule.groups, rule.key, rule.value = own.heads, learner.groups, learner.key, learner.value
    rule.is_gated = own.gate
    step.more_from = sum(learner.features[:2])
    conv = learner.conv1d
    return fill_convolution(rule.conv, *((None, None) if conv is None else (conv.weight[:, 0], conv.bias)))


def _fill_mlstm(step: Step, learner: Any) -> list[Tensor]:
    own, rule = learner.config, step.mlstm
    rule.norm, rule.norm_eps, rule.cap = learner.norm.data_ptr(), own.norm_eps, own.cap or 0.0
    rule.input_bias, rule.forget_bias = learner.input_bias.data_ptr(), learner.forget_bias.data_ptr()
    rule.heads, rule.key, rule.value, rule.gate = own.heads, learner.key, learner.value, GATES[own.output]
    rule.is_exponential, rule.is_layer_norm = own.forget == "exponential", own.norm == "layer"
    return fill_convolution(rule.conv, learner.conv if learner.taps > 1 else None, None)


def _fill_mamba2(step: Step, learner: Any) -> list[Tensor]:
    own, rule = learner.config, step.mamba2
    tensors = [learner.A_log.exp()]
    rule.rate, rule.dt_bias, rule.skip = tensors[0].data_ptr(), learner.dt_bias.data_ptr(), learner.D.data_ptr()
    if own.multipliers is not None:
        sizes = torch.tensor([learner.channels, learner.channels, learner.shared, learner.shared, learner.heads])
        tensors.append(torch.tensor(own.multipliers, dtype=torch.float32).repeat_interleave(sizes))
        rule.scale = tensors[-1].data_ptr()
    if own.norm != "none":
        rule.norm, rule.is_normed_first = learner.norm.weight.data_ptr(), own.norm == "before_gate"
    low, high = own.time_step_limit
    rule.low, rule.high, rule.norm_eps = low, math.inf if high is None else high, own.norm_eps
    rule.heads, rule.groups, rule.norm_groups = learner.heads, own.groups, own.norm_groups or own.groups
    rule.size, rule.head_size = own.state_size, own.head_size
    conv = learner.conv1d
    return tensors + fill_convolution(rule.conv, conv.weight[:, 0], conv.bias)


def _fill_gated_conv(step: Step, learner: Any) -> list[Tensor]:
    return fill_convolution(step.conv, learner.conv.weight[:, 0], learner.conv.bias)


def _no_refusal(learner: Any) -> None:
    """Why a learner of a type that is always run cannot be: there is no reason."""


FORMS: dict[type, Form] = {
    Momentum: Form(MOMENTUM, _no_refusal, lambda own: (own.project, None, own.out), _fill_momentum, MomentumState),
    Kalman: Form(KALMAN, _kalman_refusal, lambda own: (own.observe, own.gate, own.out), _fill_kalman, KalmanState),
    Delta: Form(DELTA, _delta_refusal, lambda own: (own.project, None, own.out), _fill_delta, DeltaState),
    GLA: Form(FUSED_GLA, _no_refusal, lambda own: (own.project, own.decay, own.out), _fill_gla, GLAState),
    MLSTM: Form(FUSED_MLSTM, _no_refusal, lambda own: (own.project, None, own.out), _fill_mlstm, MLSTMState),
    GatedConv: Form(
        GATED_CONV, _no_refusal, lambda own: (own.in_proj, None, own.out_proj), _fill_gated_conv, lambda inputs: inputs
    ),
    Experts: Form(
        EXPERTS, experts_refusal, lambda own: (own.router, own.pool.inputs, own.pool.out), fill_experts, lambda: ()
    ),
    Mamba: Form(
        FUSED_MAMBA, _no_refusal, lambda own: (own.in_proj, None, own.out_proj), fill_mamba, MambaState, mamba_maps
    ),
    KDA: Form(FUSED_KDA, _no_refusal, lambda own: (own.project, None, own.out), fill_kda, KDAState, kda_maps),
    RGLRU: Form(
        RG_LRU, rg_lru_refusal, lambda own: (own.linear_x, own.linear_y, own.linear_out), fill_rg_lru, RGLRUState
    ),
    RWKV7: Form(
        FUSED_RWKV7, _no_refusal, lambda own: (own.receptance, None, own.out), fill_rwkv7, RWKV7State, rwkv7_maps
    ),
    Mamba2: Form(MAMBA2, _no_refusal, lambda own: (own.in_proj, None, own.out_proj), _fill_mamba2, MambaState),
}
