"""A decoded token on CUDA in few launches: the model's state changes where it stands.

A learner that has such a step launches three kernels: its norm and maps, its step, its output map with the stream; a
gated MLP two. Others of the same block run as in any pass, and their states are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core import state as states
from synthe_core.hardware.probe import probe
from synthe_core.layers.delta import Delta
from synthe_core.layers.kalman import MIN_NOISE, Kalman
from synthe_core.layers.learner import Pass
from synthe_core.layers.mlp import MLP
from synthe_core.layers.momentum import Momentum
from synthe_core.layers.projection import Linear
from synthe_core.layers.quantized import QuantizedLinear
from synthe_core.model.block import PRE_NORM, Block, RMSNorm
from synthe_core.model.language_model import LanguageModel, ModelState
from synthe_core.ops import decode_step
from synthe_core.ops.decode_step import DeltaWeights, MapWeights
from synthe_core.ops.triton_launch import interpreted
from synthe_core.quantization.matrix import CodedMatrix, FloatMatrix

LearnerStep = Callable[[Tensor, Any, Pass], None]
"""Adds a learner to the stream x [B, D], and changes its state, both in place."""


def serves(model: LanguageModel) -> bool:
    """Whether the kernels exist here for the model's device and the type of its stream."""
    weight = next(model.parameters())
    if weight.dtype != torch.float32 or "triton" not in probe().libraries:
        return False
    return weight.is_cuda or interpreted()


class InPlaceStep:
    """One token of every row, of a model that `serves` accepts. It reads the model's weights where they are: maps that
    are replaced, by an adapter for example, need another."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        blocks: Any = model.blocks
        self._steps = [[_learner_step(block, number) for number in range(len(block.steps))] for block in blocks]

    def __call__(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, dict[str, Tensor]]:
        """The normalised output of the last block [B, 1, D] after tokens int64 [B, 1], and signals [B, 1]; `state`
        becomes the one after them."""
        ctx = Pass.over(tokens, None, state.position)
        x = self.model.embed(tokens, ctx.positions)[:, 0].contiguous()
        blocks: Any = self.model.blocks
        for block, steps, remembered in zip(blocks, self._steps, state.blocks, strict=True):
            for number, step in enumerate(steps):
                if step is not None:
                    step(x, remembered[number], ctx)
                    continue
                learner, norm = block.learners[number], block.norms[block.steps[number].norm]
                y, after = learner(norm(x[:, None]), remembered[number], ctx)
                states.map_leaves(lambda old, new: old if new is old else old.copy_(new), remembered[number], after)
                x += y[:, 0]
        state.position.add_(1)
        return self.model.norm(x)[:, None], dict(ctx.signals)


def refusal(model: LanguageModel) -> str | None:
    """Why a model's step is computed operator by operator; None where it is not."""
    blocks: Any = model.blocks
    if not all(isinstance(block, Block) for block in blocks):
        return "transformers runs this model"
    if not serves(model):
        return "the kernels are for models in float32 on CUDA, with Triton"
    if model.router is not None or model.without or model.offload is not None:
        return "tokens leave out blocks, or the model parts, or weights are read from files"
    if any(step.residual != PRE_NORM for block in blocks for step in block.steps):
        return "a block adds a learner in another way than x + learner(norm(x))"
    if not any(_learner_step(block, number) for block in blocks for number in range(len(block.steps))):
        return "no learner has a step of its own"
    return None


def _learner_step(block: Any, number: int) -> LearnerStep | None:
    """The step of a learner; None for one that runs as in any pass."""
    learner, norm = block.learners[number], block.norms[block.steps[number].norm]
    if type(norm) is not RMSNorm or getattr(learner.config, "when", None) is not None:
        return None
    make = MAKERS.get(type(learner))
    return None if make is None else make(learner, norm.weight, norm.eps)


def map_weights(map: nn.Module) -> MapWeights | None:
    """A map's weights as the kernels read them; None for a map with an adapter, or of another format."""
    if type(map) is QuantizedLinear and isinstance(map.matrix, CodedMatrix):
        own, form = map.matrix, map.matrix.form
        codes, scale = own.get_buffer("codes"), own.get_buffer("scale")
        return MapWeights(codes, scale, map.bias, own.shape[0], own.shape[1], form.group, form.bits)
    if type(map) is QuantizedLinear and isinstance(map.matrix, FloatMatrix) and map.matrix.values.stride(-1) == 1:
        return MapWeights(map.matrix.values, None, map.bias, map.out_features, map.in_features)
    if type(map) not in (Linear, nn.Linear):
        return None
    assert isinstance(map, nn.Linear)
    weight = map.weight if map.weight.stride(-1) == 1 else map.weight.contiguous()
    return MapWeights(weight, None, map.bias, map.out_features, map.in_features)


def _momentum(learner: Momentum, norm: Tensor, eps: float) -> LearnerStep | None:
    maps, out = map_weights(learner.project), map_weights(learner.out)
    if maps is None or out is None:
        return None

    def run(x: Tensor, state: Any, ctx: Pass) -> None:
        projected = decode_step.norm_maps(x, norm, eps, maps)
        y = decode_step.momentum_step(projected, learner.decay_bias, state.average, learner.config.gate)
        decode_step.add_map(x, y, out)

    return run


def _kalman(learner: Kalman, norm: Tensor, eps: float) -> LearnerStep | None:
    if learner.config.every > 1 or learner.config.covariance is not None:
        return None
    observe, gate, out = (map_weights(each) for each in (learner.observe, learner.gate, learner.out))
    if observe is None or gate is None or out is None:
        return None
    parameters = learner.transition_logit, learner.process_logit, learner.noise_bias

    def run(x: Tensor, state: Any, ctx: Pass) -> None:
        projected = decode_step.norm_maps(x, norm, eps, observe, gate)
        y, signals = decode_step.kalman_step(projected, *parameters, state.mean, state.variance, MIN_NOISE)
        ctx.signals["surprise"], ctx.signals["confidence"] = signals[:, :1], signals[:, 1:]
        decode_step.add_map(x, y, out)

    return run


def _delta(learner: Delta, norm: Tensor, eps: float) -> LearnerStep | None:
    own, largest = learner.config, max(learner.key, learner.value)
    if own.householder > 1 or own.clip is not None or own.signals or learner.value_heads != own.heads:
        return None
    maps, out = map_weights(learner.project), map_weights(learner.out)
    if maps is None or out is None or largest > decode_step.MAX_HEAD:
        return None
    weights = DeltaWeights(
        learner.conv if learner.taps > 1 else None,
        learner.conv_bias,
        learner.A_log if own.decay else None,
        learner.dt_bias if own.decay else None,
        learner.norm,
        own.heads,
        learner.key,
        learner.value,
        learner.taps,
        own.beta_range[0],
        own.beta_range[1],
        own.key_norm_eps,
        own.norm_eps / own.query_scale**2,
        own.scale,
        own.overwrite,
        own.gate_function if own.gate else "none",
    )

    def run(x: Tensor, state: Any, ctx: Pass) -> None:
        projected = decode_step.norm_maps(x, norm, eps, maps)
        decode_step.add_map(x, decode_step.delta_step(projected, state.memory, state.conv, weights), out)

    return run


def _mlp(learner: MLP, norm: Tensor, eps: float) -> LearnerStep | None:
    own = learner.config
    if not own.gated or own.activation != "silu" or own.gate_scale != 1:
        return None
    gate_up, out = map_weights(learner.gate_up), map_weights(learner.out)
    if gate_up is None or out is None:
        return None

    def run(x: Tensor, state: Any, ctx: Pass) -> None:
        decode_step.add_map(x, decode_step.norm_swiglu(x, norm, eps, gate_up), out)

    return run


MAKERS: dict[type, Callable[[Any, Tensor, float], LearnerStep | None]] = {
    Delta: _delta,
    Kalman: _kalman,
    MLP: _mlp,
    Momentum: _momentum,
}
