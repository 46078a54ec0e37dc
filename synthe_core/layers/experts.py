"""A sparse mixture of experts: many small networks, of which every token uses a few."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.adapter_batch import per_adapter
from synthe_core.layers.learner import Learner, Pass
from synthe_core.layers.mlp import MLP
from synthe_core.layers.projection import Linear, matrix_size, project_in, project_out
from synthe_core.layers.routing import Routing, RoutingSpec, real_tokens
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import Activation, sigmoid
from synthe_core.ops.dispatch import compute_dtype
from synthe_core.ops.expert_mlp import expert_mlp
from synthe_core.quantization.matrix import count_parameters


class PoolSpec(RoutingSpec):
    """The settings of a pool of experts."""

    hidden: int | None = Field(
        None, ge=1, description="inner width of an expert; default 8/3 of the width over top_k, rounded up to 32"
    )
    activation: Activation = Field("silu", description="of an expert, as `mlp` has them")
    gated: bool = Field(True, description="an expert's activation multiplies another map; false: one map and it")
    shared: int | None = Field(
        None, ge=1, description="inner width of an expert that every token uses besides; null: none"
    )
    shared_gate: bool = Field(False, description="multiply that expert's output by a sigmoid of the token")


class ExpertPool(nn.Module):
    """N feed-forward networks as `mlp` has them, and the choice among them by a router's logits (`Routing`).

    y_t = Σ_k w_k E_k(x_t) over the K experts that token t is sent to. With `shared` an expert S of its own width serves
    every token: y_t = Σ_k w_k E_k(x_t) + g_t S(x_t), g_t = σ(u · x_t) with `shared_gate`, else 1. No expert has a
    capacity and no token is dropped, so a token's output depends on no other.

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
            "shared_gate": Emission("B T", "gates", "what the shared expert's output is multiplied by"),
        }
    )

    def __init__(self, config: PoolSpec, width: int, name: str) -> None:
        super().__init__()
        if config.shared_gate and config.shared is None:
            raise InputError(f"{name}: shared_gate without a shared expert", "set `shared`, or leave it out")
        self.config = config
        self.routing = Routing(config, name)
        hidden = config.hidden or -(-8 * width // (3 * 32 * config.top_k)) * 32
        if config.gated:
            self.gate_up = project_in(width, config.experts * 2 * hidden)
        else:
            self.up = project_in(width, config.experts * hidden)
        self.out = project_out(config.experts * hidden, width)
        with torch.no_grad():
            self.out.weight.mul_(config.experts**0.5)  # an expert's output is a sum over its own hidden units only
        self.shared, self.shared_gate = None, project_in(width, 1) if config.shared_gate else None
        if config.shared is not None:
            spec = MLP.Config(hidden=config.shared, activation=config.activation, gated=config.gated)
            self.shared = MLP(spec, width)

    @property
    def inputs(self) -> Linear:
        """The maps that read the input."""
        return self.gate_up if self.config.gated else self.up

    def forward(self, x: Tensor, logits: Tensor, ctx: Pass) -> Tensor:
        """y [B, T, D] of x [B, T, D], routed by `logits` [B, T, N] in float32 or float64."""
        chosen = self.routing.choose(logits, ctx)
        weight = self.routing.weigh(logits, chosen)
        y = self._run(x, chosen, weight)
        if self.shared is not None:
            y = y + self._shared(x, ctx)
        self.routing.add_losses(logits, chosen, ctx)
        if ctx.trace is not None:
            self._emit(x, logits, chosen, weight, ctx)
        return y

    def _shared(self, x: Tensor, ctx: Pass) -> Tensor:
        """g ⊙ S(x) [B, T, D]."""
        assert self.shared is not None
        y, _ = self.shared(x, (), ctx)
        if self.shared_gate is None:
            return y
        gate = sigmoid(self.shared_gate(x))
        ctx.emit("shared_gate", gate.squeeze(-1))
        return gate * y

    def _run(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """Σ_k w_k E_k(x) [B, T, D]. The op reads the matrices: of rows with different adapters, apart for each."""
        dtype = compute_dtype(x)
        return per_adapter((self.inputs, self.out), self._experts, x.to(dtype), chosen, weight.to(dtype))

    def _experts(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        config = self.config
        gate_up = self.inputs.weight.to(x.dtype).unflatten(0, (config.experts, -1))
        out = self.out.weight.to(x.dtype).unflatten(1, (config.experts, -1)).transpose(0, 1)
        return expert_mlp(x, chosen, weight, gate_up, out, config.activation, config.gated)

    @torch.no_grad()
    def _emit(self, x: Tensor, logits: Tensor, chosen: Tensor, weight: Tensor, ctx: Pass) -> None:
        """Emits the entries of `emits`, without padding."""
        real = real_tokens(logits, ctx)
        counts, lengths = logits.new_zeros(2, self.config.experts)
        for choice in chosen.split(1, dim=-1):
            length = self._run(x, choice, torch.ones_like(choice, dtype=x.dtype)).norm(dim=-1, keepdim=True)
            counts.index_add_(0, choice.flatten(), real.flatten())
            lengths.index_add_(0, choice.flatten(), (real * length).flatten())
        ctx.emit("chosen", chosen)
        ctx.emit("weight", weight)
        log_scores = self.routing.log_shares(logits)
        best = log_scores.topk(2, dim=-1).values
        ctx.emit("scores", log_scores.exp())
        ctx.emit("margin", (best[..., 0] - best[..., 1]).exp())
        ctx.emit("entropy", -(log_scores.exp() * log_scores).sum(-1))
        ctx.emit("counts", counts)
        ctx.emit("magnitude", lengths / counts.clamp_min(1))
        ctx.emit("balance", counts.max() * len(counts) / counts.sum().clamp_min(1))
        ctx.emit("sparsity", (counts == 0).to(counts.dtype).mean())

    def active_parameters(self) -> int:
        """The weights that one token uses: those of K experts and of the shared one."""
        total = matrix_size(self.inputs) + matrix_size(self.out)
        always = sum(count_parameters(part) for part in (self.shared, self.shared_gate) if part is not None)
        return total // self.config.experts * self.config.top_k + always


class Experts(Learner[tuple[()]]):
    """y_t = Σ_{e in top K} w_e E_e(x_t), routed by the token alone: logits R x_t. x [B, T, D], R [N, D], no state.

    With `latent` the experts read and write L numbers: y_t = V Σ_e w_e E_e(U x_t), U [L, D], V [D, L].

    The experts are `ExpertPool`'s, the choice, its weights and the losses `Routing`'s. Logits are computed in float32
    also under autocast: a rounded logit is another choice.

    Sources: Shazeer et al. 2017 (the sparsely gated mixture), Fedus et al. 2021 (the loss), NVIDIA 2025 (Nemotron 3:
    the latent).
    """

    class Config(PoolSpec):
        type: Literal["experts"] = "experts"
        latent: int | None = Field(
            None, ge=1, description="numbers that the experts read and write; null: the width, without maps between"
        )

    emits = ExpertPool.emits

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        if config.latent is not None and config.shared is not None:
            raise InputError(
                "experts: a shared expert would read the latent", "put an mlp beside: residual={norm: shared}"
            )
        self.router = project_in(width, config.experts)
        self.pool = ExpertPool(config, config.latent or width, config.type)
        if config.latent is not None:
            self.into_latent, self.from_latent = project_in(width, config.latent), project_out(config.latent, width)

    def init_state(self, batch: int, *, device: object = "cpu") -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()] | None, ctx: Pass) -> tuple[Tensor, tuple[()]]:
        logits = self.router.project(x, dtype=self.state_dtype)
        if self.config.latent is None:
            return self.pool(x, logits, ctx), ()
        return self.from_latent(self.pool(self.into_latent(x), logits, ctx)), ()

    def active_parameters(self) -> int:
        between = 0 if self.config.latent is None else matrix_size(self.into_latent) + matrix_size(self.from_latent)
        return matrix_size(self.router) + between + self.pool.active_parameters()

    def flops(self, time: int) -> float:
        return 2.0 * self.active_parameters()
