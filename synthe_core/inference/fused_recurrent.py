"""The learners with a state of fixed size that `FusedDecoder` runs: what C is given of them, and their states."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synthe_core.layers.delta import Delta, DeltaState
from synthe_core.layers.kalman import MIN_NOISE, Kalman, KalmanState
from synthe_core.layers.momentum import Momentum, MomentumState
from synthe_core.ops.activations import sigmoid, softplus
from synthe_core.ops.fused_decode import DELTA, KALMAN, MOMENTUM, NO_GATE, SIGMOID_GATE, SILU_GATE, Step


class Form(NamedTuple):
    """How a type of learner is run. refusal: why one of it cannot be, or None; maps: of its input, of its gates where
    those are made apart, and of its output; fill: what of a step is the same in every pass, with the tensors whose
    addresses C has; state: its leaves, as a state."""

    kind: int
    refusal: Callable[[Any], str | None]
    maps: Callable[[Any], tuple[nn.Module, nn.Module | None, nn.Module]]
    fill: Callable[[Step, Any], list[Tensor]]
    state: Callable[..., Any]


def begin(step: Step, state: Iterable[Tensor], made: Callable[..., Any]) -> tuple[Any, list[Tensor]]:
    """The state that C will fill, and the tensors it has the addresses of."""
    before = [leaf.contiguous() for leaf in state]
    after = [torch.empty_like(leaf) for leaf in before]
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        step.before[number], step.after[number] = old.data_ptr(), new.data_ptr()
    return made(*after), before


def _fill_momentum(step: Step, learner: Any) -> list[Tensor]:
    step.bias = learner.decay_bias.data_ptr()
    return []


def _kalman_refusal(learner: Any) -> str | None:
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
    if learner.taps > 1:
        tensors.append(learner.conv.t().contiguous())
        rule.conv = tensors[-1].data_ptr()
    rule.conv_bias = None if learner.conv_bias is None else learner.conv_bias.data_ptr()
    if own.decay:
        tensors.append(learner.A_log.exp())
        rule.rate, rule.rate_bias = tensors[-1].data_ptr(), learner.dt_bias.data_ptr()
    rule.low, rule.high = own.beta_range
    rule.key_eps, rule.norm_eps = own.key_norm_eps / learner.key, own.norm_eps / own.query_scale**2
    rule.heads, rule.value_heads, rule.key, rule.value = own.heads, learner.value_heads, learner.key, learner.value
    rule.taps, rule.overwrites = learner.taps, own.overwrite
    rule.gate = {"silu": SILU_GATE, "sigmoid": SIGMOID_GATE}[own.gate_function] if own.gate else NO_GATE
    return tensors


FORMS: dict[type, Form] = {
    Momentum: Form(MOMENTUM, lambda _: None, lambda own: (own.project, None, own.out), _fill_momentum, MomentumState),
    Kalman: Form(KALMAN, _kalman_refusal, lambda own: (own.observe, own.gate, own.out), _fill_kalman, KalmanState),
    Delta: Form(DELTA, _delta_refusal, lambda own: (own.project, None, own.out), _fill_delta, DeltaState),
}
