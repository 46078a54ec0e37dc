"""A sparse mixture of experts: many small networks, of which every token uses a few."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.adapter_batch import per_adapter
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import Linear, matrix_size, project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import Activation
from synthe_core.ops.dispatch import compute_dtype
from synthe_core.ops.expert_mlp import expert_mlp


class PoolSpec(LearnerConfig):
    """The settings of a pool of experts."""

    experts: int = Field(8, ge=2, description="how many experts there are")
    top_k: int = Field(2, ge=1, description="how many of them a token is sent to")
    hidden: int | None = Field(
        None, ge=1, description="inner width of an expert; default 8/3 of the width over top_k, rounded up to 32"
    )
    activation: Activation = Field("silu", description="of an expert, as `mlp` has them")
    gated: bool = Field(True, description="an expert's activation multiplies another map; false: one map and it")
    balance: float = Field(0.01, ge=0, description="weight of the loss that spreads the tokens over the experts")
    z_loss: float = Field(0.0, ge=0, description="weight of the loss that keeps the router's logits small")


class ExpertPool(nn.Module):
    """N feed-forward networks as `mlp` has them, the choice among them by a router's logits, and the losses that
    balance it.

    Token t goes to the K experts of largest logit; y_t = Σ_k w_k E_k(x_t), where w is the softmax over the K chosen
    logits (Shazeer et al. 2017). With K = 1 that is 1, which would teach the router nothing: there w is the expert's
    probability among all N (Fedus et al. 2021, Switch). No expert has a capacity and no token is dropped, so a
    token's output depends on no other.

    Losses: `balance` · N Σ_e f_e P_e (Fedus et al. 2021), f_e the share of the visits that expert e got and P_e its
    mean probability, 1 when all are alike; `z_loss` · mean (log Σ_e exp l_e)² (Zoph et al. 2022). Both are means over
    the real tokens of the pass.

    All experts together are one wide MLP, of which a token uses K/N: their matrices are concatenated in two linear
    maps, `gate_up` [N 2H, D], or `up` [N H, D] without a gate, and `out` [D, N H], as optimizers, checkpoints and
    merges see them.
    """

    emits = schema(
        {
            "chosen": Emission("B T K", "routing", "the experts of a token, the best first"),
            "weight": Emission("B T K", "routing", "weights of those experts' outputs"),
            "scores": Emission("B T N", "routing", "the router's probability of every expert"),
            "margin": Emission("B T", "confidence", "probability of the best expert over that of the second"),
            "entropy": Emission("B T", "confidence", "entropy of the router's probabilities, in nats"),
            "counts": Emission("N", "routing", "tokens that each expert got"),
            "magnitude": Emission("N", "routing", "mean norm of an expert's outputs"),
            "balance": Emission("", "routing", "visits of the busiest expert over the mean: 1 is even"),
            "sparsity": Emission("", "routing", "share of the experts without a token"),
        }
    )

    def __init__(self, config: PoolSpec, width: int, name: str) -> None:
        super().__init__()
        if config.top_k > config.experts:
            raise InputError(
                f"{name}: top_k {config.top_k} of {config.experts} experts", f"top_k may be 1 to {config.experts}"
            )
        self.config = config
        hidden = config.hidden or -(-8 * width // (3 * 32 * config.top_k)) * 32
        if config.gated:
            self.gate_up = project_in(width, config.experts * 2 * hidden)
        else:
            self.up = project_in(width, config.experts * hidden)
        self.out = project_out(config.experts * hidden, width)
        with torch.no_grad():
            self.out.weight.mul_(config.experts**0.5)  # an expert's output is a sum over its own hidden units only

    @property
    def inputs(self) -> Linear:
        """The maps that read the input."""
        return self.gate_up if self.config.gated else self.up

    def top(self, logits: Tensor, ctx: Pass) -> Tensor:
        """The K experts of largest logit, int64 [B, T, K] of [B, T, N]. Padding goes to expert 0: its values
        may not decide, because the size of an expert's group changes the rounding of its other tokens."""
        chosen = logits.topk(self.config.top_k, dim=-1).indices
        return chosen if ctx.mask is None else chosen.masked_fill(~ctx.mask[..., None], 0)

    def forward(self, x: Tensor, logits: Tensor, ctx: Pass) -> Tensor:
        """y [B, T, D] of x [B, T, D], routed by `logits` [B, T, N] in float32 or float64."""
        chosen = self.top(logits, ctx)
        among = logits.softmax(-1) if self.config.top_k == 1 else logits
        weight = among.gather(-1, chosen)
        weight = weight if self.config.top_k == 1 else weight.softmax(-1)
        y = self._run(x, chosen, weight)
        self._add_losses(logits, chosen, ctx)
        if ctx.trace is not None:
            self._emit(x, logits, chosen, weight, ctx)
        return y

    def _run(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """Σ_k w_k E_k(x) [B, T, D]. The op reads the matrices: of rows with different adapters, apart for each."""
        dtype = compute_dtype(x)
        return per_adapter((self.inputs, self.out), self._experts, x.to(dtype), chosen, weight.to(dtype))

    def _experts(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        config = self.config
        gate_up = self.inputs.weight.to(x.dtype).unflatten(0, (config.experts, -1))
        out = self.out.weight.to(x.dtype).unflatten(1, (config.experts, -1)).transpose(0, 1)
        return expert_mlp(x, chosen, weight, gate_up, out, config.activation, config.gated)

    def _add_losses(self, logits: Tensor, chosen: Tensor, ctx: Pass) -> None:
        real = torch.ones_like(logits[..., :1]) if ctx.mask is None else ctx.mask[..., None].to(logits.dtype)
        tokens = real.sum().clamp_min(1)
        if self.config.balance:
            visits = one_hot(chosen, logits) * real
            share = visits.sum((0, 1)) / (tokens * self.config.top_k)
            probability = (logits.softmax(-1) * real).sum((0, 1)) / tokens
            ctx.losses.append(("router_balance", self.config.balance * len(share) * (share * probability).sum()))
        if self.config.z_loss:
            z = logits.logsumexp(-1, keepdim=True).square() * real
            ctx.losses.append(("router_z", self.config.z_loss * z.sum() / tokens))

    @torch.no_grad()
    def _emit(self, x: Tensor, logits: Tensor, chosen: Tensor, weight: Tensor, ctx: Pass) -> None:
        """Emits the entries of `emits`, without padding."""
        real = torch.ones_like(logits[..., :1]) if ctx.mask is None else ctx.mask[..., None].to(logits.dtype)
        counts, lengths = logits.new_zeros(2, self.config.experts)
        for choice in chosen.split(1, dim=-1):
            length = self._run(x, choice, torch.ones_like(choice, dtype=x.dtype)).norm(dim=-1, keepdim=True)
            counts.index_add_(0, choice.flatten(), real.flatten())
            lengths.index_add_(0, choice.flatten(), (real * length).flatten())
        ctx.emit("chosen", chosen)
        ctx.emit("weight", weight)
        log_scores = logits.log_softmax(-1)
        best = log_scores.topk(2, dim=-1).values
        ctx.emit("scores", log_scores.exp())
        ctx.emit("margin", (best[..., 0] - best[..., 1]).exp())
        ctx.emit("entropy", -(log_scores.exp() * log_scores).sum(-1))
        ctx.emit("counts", counts)
        ctx.emit("magnitude", lengths / counts.clamp_min(1))
        ctx.emit("balance", counts.max() * len(counts) / counts.sum().clamp_min(1))
        ctx.emit("sparsity", (counts == 0).to(counts.dtype).mean())

    def active_parameters(self) -> int:
        """The weights that one token uses: those of K experts."""
        total = matrix_size(self.inputs) + matrix_size(self.out)
        return total // self.config.experts * self.config.top_k


class Experts(Learner[tuple[()]]):
    """y_t = Σ_{e in top K} w_e E_e(x_t), routed by the token alone: logits R x_t. x [B, T, D], R [N, D], no state.

    The experts, their weights and the losses are `ExpertPool`'s. Logits are computed in float32 also under autocast: a
    rounded logit is another choice.

    Sources: Shazeer et al. 2017 (the sparsely gated mixture), Fedus et al. 2021 (the loss).
    """

    class Config(PoolSpec):
        type: Literal["experts"] = "experts"

    emits = ExpertPool.emits

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.router = project_in(width, config.experts)
        self.pool = ExpertPool(config, width, config.type)

    def init_state(self, batch: int, *, device: object = "cpu") -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()] | None, ctx: Pass) -> tuple[Tensor, tuple[()]]:
        return self.pool(x, self.router.project(x, dtype=self.state_dtype), ctx), ()

    def active_parameters(self) -> int:
        return matrix_size(self.router) + self.pool.active_parameters()

    def flops(self, time: int) -> float:
        return 2.0 * self.active_parameters()


def one_hot(chosen: Tensor, like: Tensor) -> Tensor:
    """Ones at the chosen experts, zeros elsewhere: [B, T, N] of chosen [B, T, K]."""
    return torch.zeros_like(like).scatter_(-1, chosen, 1.0)
