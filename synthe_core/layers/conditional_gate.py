"""Conditional computation: a learner runs only at tokens whose signal passes a threshold that tracks a target share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass, Spec
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.hashing import hash_uniform

RANDOM = "random"
THRESHOLD_RATE = 0.1  # share of the distance to the step's quantile by which the threshold moves each step
QUANTILE_SAMPLE = 1 << 18  # signals that a quantile is taken of, at most
UNSET = -(2.0**100)  # a threshold below every signal; a number, as weights that are saved must be


class Condition(Spec):
    """Selects tokens by a signal that an earlier learner publishes: where it is below, or above, a threshold."""

    signal: str = Field(..., description="name of the signal; `random` selects by position alone, as a control")
    below: float | None = Field(None, description="select where the signal is below this; training may move it")
    above: float | None = Field(None, description="or where the signal is above this")
    target: float | None = Field(
        0.25, gt=0, lt=1, description="share of tokens to select; training moves the threshold to it; null = fixed"
    )
    explore: float = Field(
        0.1, ge=0, lt=1, description="in training, the share of the other tokens that are selected as well"
    )
    temperature: float = Field(
        0.1, gt=0, description="width of the straight-through sigmoid around the threshold, in the signal's units"
    )

    @model_validator(mode="after")
    def _one_side(self) -> Condition:
        if (self.below is None) == (self.above is None):
            raise ValueError("give one of `below` and `above`")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        """The signal, unless it is `random`, which no learner publishes."""
        return () if self.signal == RANDOM else (self.signal,)


class SelectedTokens(NamedTuple):
    """The tokens of a pass at which a learner runs.

    mask: bool [B, T]. indices: int64 [N], the selected tokens in the rows laid end to end. scale [N]: a factor of each
    token's output, 1 in value, which carries the straight-through gradient to the signal.
    """

    mask: Tensor
    indices: Tensor
    scale: Tensor


class ConditionalGate(nn.Module):
    """Selects token t where m_t > 0, m_t = θ - s_t (`below`) or s_t - θ (`above`); s [B, T] is the signal.

    A decision depends on the token's own signal and on θ, which moves between training steps only: after each step, by
    a tenth of the distance to the quantile of that step's signals at which `target` of the real tokens would have been
    selected. θ therefore tracks the signal at any scale, and keeps its value after training.

    Straight-through (Bengio et al. 2013): the output y counts in full, and its gradient reaches the signal as if y were
    multiplied by σ(m_t / temperature). A token that is not selected has no output and gives no gradient. So that such
    tokens are tried too, training selects a share `explore` of the others by position.

    `random` is a control: s_t is a hash of the token's position, uniform in [0, 1), which selects as many tokens as an
    informative signal would.
    """

    threshold: Tensor
    seed: Tensor

    def __init__(self, condition: Condition) -> None:
        super().__init__()
        self.condition = condition
        start = condition.below if condition.below is not None else condition.above
        self.register_buffer("threshold", torch.tensor(start))
        self.register_buffer("seed", torch.randint(1 << 40, ()))  # one for each learner

    def forward(self, ctx: Pass, dtype: torch.dtype) -> SelectedTokens:
        """The selected tokens of this pass; margins are computed in `dtype`."""
        condition = self.condition
        signal = self._signal(ctx).to(dtype)
        margin = self.threshold.to(dtype) - signal
        margin = margin if condition.above is None else -margin
        mask = margin > 0 if ctx.mask is None else (margin > 0) & ctx.mask
        tokens = mask.numel() if ctx.mask is None else ctx.mask.sum().clamp_min(1)
        ctx.measures.append(("gate_rate", mask.sum() / tokens))  # without the tokens that explore
        if self.training and condition.explore:
            mask = mask | (hash_uniform(ctx.positions, -self.seed) < condition.explore)
            mask = mask if ctx.mask is None else mask & ctx.mask
        ctx.emit("gate_open", mask)
        if self.training and condition.target is not None:
            share = condition.target if condition.above is None else 1 - condition.target
            moved = moved_threshold(self.threshold, signal.detach(), ctx.mask, share, THRESHOLD_RATE)
            ctx.buffer_updates.append((self.threshold, moved))
        index = mask.flatten().nonzero().squeeze(1)
        soft = sigmoid(margin.flatten().index_select(0, index) / condition.temperature)
        return SelectedTokens(mask, index, 1 + (soft - soft.detach()))

    def _signal(self, ctx: Pass) -> Tensor:
        name = self.condition.signal
        if name == RANDOM:
            return hash_uniform(ctx.positions, self.seed)
        if name not in ctx.signals:
            raise InputError(
                f"no learner before has published the signal '{name}'",
                f"published: {', '.join(sorted(ctx.signals)) or 'none'}",
            )
        return ctx.signals[name]


def moved_threshold(threshold: Tensor, signal: Tensor, mask: Tensor | None, share: float, rate: float) -> Tensor:
    """The threshold after a training step: moved by `rate` of its distance to the quantile `share` of the signals of
    real tokens, and all the way from UNSET or infinity. Unchanged after a step without a real token."""
    sample = signal if mask is None else signal.masked_fill(~mask, torch.nan)
    sample = sample.flatten()[:: -(-sample.numel() // QUANTILE_SAMPLE)]
    quantile = sample.nanquantile(share).to(threshold.dtype)
    moved = torch.where(threshold.isinf() | (threshold <= UNSET), quantile, threshold.lerp(quantile, rate))
    return torch.where(quantile.isnan(), threshold, moved)
