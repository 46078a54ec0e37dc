"""The choice among experts: scores of a router's logits, the experts of largest score, their weights and the losses."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.learner import LearnerConfig, Pass
from synthe_core.ops.activations import sigmoid

LEAST_SUM = 1e-20  # added to the sum that weights of sigmoid scores are divided by


class RoutingSpec(LearnerConfig):
    """The settings of a choice among experts."""

    experts: int = Field(8, ge=2, description="how many experts there are")
    top_k: int = Field(2, ge=1, description="how many of them a token is sent to")
    scores: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="an expert's score: its probability among all, or the sigmoid of its logit alone"
    )
    normalize: bool | None = Field(
        None, description="divide the weights of the chosen experts by their sum; default unless top_k is 1"
    )
    weight_scale: float = Field(1.0, gt=0, description="what the weights are multiplied by")
    groups: int = Field(1, ge=1, description="groups of experts, each with as many")
    top_groups: int = Field(
        1, ge=1, description="how many groups a token chooses from: those of the largest sums of their two best scores"
    )
    bias_rate: float | None = Field(
        None,
        ge=0,
        description="balance the load by a bias of each expert's score, for the choice only, which a training step "
        "moves by this; null: no bias",
    )
    balance: float = Field(0.01, ge=0, description="weight of the loss that spreads the tokens over the experts")
    z_loss: float = Field(0.0, ge=0, description="weight of the loss that keeps the router's logits small")


class Routing(nn.Module):
    """Which K of N experts a token is sent to, and with what weights, by the router's logits l [B, T, N].

    Scores s are softmax(l), or σ(l). The token goes to the K experts of largest s_e + b_e; b is zero without
    `bias_rate`. With `groups` it chooses among the experts of the `top_groups` groups whose two largest s_e + b_e have
    the largest sums. The weights are w_k = s_k / Σ s over the chosen, or s_k where they are not normalised, times
    `weight_scale`. K = 1 makes a normalised weight 1, which would teach the router nothing: by default it is not.

    b [N] is a buffer and learns by no gradient: a training step moves it by `bias_rate` · sign(1/N - f), f_e being the
    share of the step's visits that expert e got.

    Losses: `balance` · N Σ_e f_e P_e, f_e the share of the visits and P_e the mean of s_e / Σ s, 1 when all are equal;
    `z_loss` · mean (log Σ_e exp l_e)². Both are means over the real tokens of the pass.

    Sources: Shazeer et al. 2017; the losses: Fedus et al. 2021 (Switch), Zoph et al. 2022; groups, sigmoid scores:
    DeepSeek-AI 2024 (DeepSeek-V3); the bias: Wang et al. 2024, "Auxiliary-loss-free load balancing".
    """

    bias: Tensor

    def __init__(self, config: RoutingSpec, name: str) -> None:
        super().__init__()
        if config.top_k > config.experts:
            raise InputError(
                f"{name}: top_k {config.top_k} of {config.experts} experts", f"top_k may be 1 to {config.experts}"
            )
        each = config.experts // config.groups
        if config.groups > 1 and (config.experts % config.groups or each < 2):
            raise InputError(
                f"{name}: {config.experts} experts make no {config.groups} groups of two or more each", "change groups"
            )
        if not config.top_k <= config.top_groups * each or config.top_groups > config.groups:
            raise InputError(
                f"{name}: top_k {config.top_k} of the experts of {config.top_groups} of {config.groups} groups",
                "change top_groups",
            )
        self.config = config
        self.normalize = config.top_k > 1 if config.normalize is None else config.normalize
        if config.bias_rate is not None:
            self.register_buffer("bias", torch.zeros(config.experts))

    def choose(self, logits: Tensor, ctx: Pass) -> Tensor:
        """The experts of each token, int64 [B, T, K] of logits [B, T, N]. Padding goes to expert 0: its values may not
        decide, because the size of an expert's group changes the rounding of its other tokens."""
        chosen = self._preference(logits).topk(self.config.top_k, dim=-1).indices
        return chosen if ctx.mask is None else chosen.masked_fill(~ctx.mask[..., None], 0)

    def _preference(self, logits: Tensor) -> Tensor:
        """What the choice goes by [B, T, N]."""
        config = self.config
        if config.bias_rate is None and config.groups == 1:
            return logits  # scores rise with them
        scores = self._scores(logits)
        scores = scores if config.bias_rate is None else scores + self.bias.to(scores.dtype)
        if config.groups == 1:
            return scores
        grouped = scores.unflatten(-1, (config.groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(config.top_groups, dim=-1).indices
        among = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=logits.device).scatter_(-1, best, True)
        return grouped.masked_fill(~among[..., None], -torch.inf).flatten(-2)

    def _scores(self, logits: Tensor) -> Tensor:
        return sigmoid(logits) if self.config.scores == "sigmoid" else logits.softmax(-1)

    def weigh(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """The weights of the chosen experts [B, T, K]."""
        if self.config.scores == "softmax" and self.normalize:
            weight = logits.gather(-1, chosen).softmax(-1)
        else:
            weight = self._scores(logits).gather(-1, chosen)
            if self.normalize:
                weight = weight / (weight.sum(-1, keepdim=True) + LEAST_SUM)
        return weight if self.config.weight_scale == 1.0 else weight * self.config.weight_scale

    def log_shares(self, logits: Tensor) -> Tensor:
        """log (s_e / Σ s) [B, T, N]: the router's probability of every expert."""
        return (nn.functional.logsigmoid(logits) if self.config.scores == "sigmoid" else logits).log_softmax(-1)

    def add_losses(self, logits: Tensor, chosen: Tensor, ctx: Pass) -> None:
        """Adds the losses, and what a training step makes of the bias, to the pass."""
        config = self.config
        if not (config.balance or config.z_loss or config.bias_rate):
            return
        real = real_tokens(logits, ctx)
        tokens = real.sum().clamp_min(1)
        share = (one_hot(chosen, logits) * real).sum((0, 1)) / (tokens * config.top_k)
        if config.balance:
            probability = (self.log_shares(logits).exp() * real).sum((0, 1)) / tokens
            ctx.losses.append(("router_balance", config.balance * len(share) * (share * probability).sum()))
        if config.z_loss:
            z = logits.logsumexp(-1, keepdim=True).square() * real
            ctx.losses.append(("router_z", config.z_loss * z.sum() / tokens))
        if config.bias_rate and self.training:
            moved = self.bias + config.bias_rate * (1 / len(share) - share.detach()).sign().to(self.bias.dtype)
            ctx.buffer_updates.append((self.bias, moved))


def real_tokens(logits: Tensor, ctx: Pass) -> Tensor:
    """1 at real tokens and 0 at padding: [B, T, 1]."""
    return torch.ones_like(logits[..., :1]) if ctx.mask is None else ctx.mask[..., None].to(logits.dtype)


def one_hot(chosen: Tensor, like: Tensor) -> Tensor:
    """Ones at the chosen experts, zeros elsewhere: [B, T, N] of chosen [B, T, K]."""
    return torch.zeros_like(like).scatter_(-1, chosen, 1.0)
