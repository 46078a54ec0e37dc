"""A mixture of experts whose router reads the context and counts the uses of each expert."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers import LAYERS
from synthe_core.layers.experts import ExpertPool, PoolSpec
from synthe_core.layers.learner import Learner, Pass
from synthe_core.layers.projection import matrix_size, project_in
from synthe_core.layers.routing import one_hot
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.linear_scan import linear_scan
from synthe_core.quantization.matrix import count_parameters

SCAN_FLOPS = 2  # an expert and token: decay, and add


def _canonical(name: Any) -> Any:
    """`thalamus`, an alias in recipes, as the learner's own name."""
    return "context_routed_moe" if name == "thalamus" else name


class ContextRoutedState(NamedTuple):
    """strength [B, N] of the way to every expert, and the state of the context's learner."""

    strength: Tensor
    context: Any


class ContextRoutedMoE(Learner[ContextRoutedState]):
    """y_t = Σ_{e in top K} w_e E_e(x_t), routed by logits l_t = R (h_t + context(h)_t), h_t = W_down x_t.

    x [B, T, D]; h [B, T, C] with C = `channels`; `context` is a learner of the table at its default settings, C wide; R
    [N, C]. What the experts do is `ExpertPool`'s, their weights and the losses are `Routing`'s.

    Every row keeps a Hebbian strength for each expert's pathway, s_t = decay · s_{t-1} + rate · f_t, with f_t [N] ones
    at the K experts of largest l_t and zeros elsewhere: a decayed count of uses, which tends to
    rate / (1 - decay) times the share of tokens that an expert gets. It is part of the state, so sessions keep it; a
    fresh state has `prior` [N], zeros unless `model.pathways` sets it to the strengths of a session.

    With `bias` the router prefers experts that were used: the choice and its weights follow l_t + b ⊙ s_{t-1}, b [N]
    learned and 0 initially. f_t still counts the top K of l_t, the choice before the bias. If it counted the biased
    choice, each token's routing would depend on that of the token before through a discrete step, which no parallel
    form computes, and a pathway would reinforce itself. Gradient reaches b and R; counts have none.

    Source: TITAN Synapse, whose strengths are of the combinations chosen, shared by all texts, and lost with the
    process; there, letting them bias the routing is future work.
    """

    class Config(PoolSpec):
        type: Annotated[Literal["context_routed_moe"], BeforeValidator(_canonical)] = "context_routed_moe"
        channels: int = Field(64, ge=1, description="width of the router's context")
        context: str = Field("mamba", description="the learner that computes the context, at its default settings")
        rate: float = Field(0.01, gt=0, description="what an expert's strength gains by a use")
        decay: float = Field(0.999, gt=0, le=1, description="decay of every strength per token")
        bias: bool = Field(
            False, description="add the strengths before a token to its routing logits, by learned weights"
        )

    emits = schema(
        {
            **ExpertPool.emits,
            "strength": Emission("B T N", "routing", "Hebbian strength of the way to every expert, after the token"),
        }
    )

    prior: Tensor

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        learner = LAYERS[config.context]
        if not learner.causal:
            raise InputError(
                f"context_routed_moe: context {config.context} sees the whole text",
                "a causal learner routes, such as mamba",
            )
        self.down = project_in(width, config.channels)
        self.context: Learner[Any] = learner(learner.Config(), config.channels)
        self.router = project_in(config.channels, config.experts)
        self.pool = ExpertPool(config, width, config.type)
        self.register_buffer("prior", torch.zeros(config.experts), persistent=False)
        if config.bias:
            self.bias = nn.Parameter(torch.zeros(config.experts))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> ContextRoutedState:
        strength = self.prior.to(dtype=self.state_dtype, device=device).repeat(batch, 1)
        return ContextRoutedState(strength, self.context.init_state(batch, device=device))

    def forward(self, x: Tensor, state: ContextRoutedState | None, ctx: Pass) -> tuple[Tensor, ContextRoutedState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        logits, context = self._logits(x, state.context, ctx)
        strength, last = self._strengthen(logits, state.strength, ctx)
        ctx.emit("strength", strength)
        if self.config.bias:
            before = torch.cat([state.strength[:, None], strength[:, :-1]], dim=1)
            logits = logits + self.bias * before
        return self.pool(x, logits, ctx), ContextRoutedState(last, context)

    def _logits(self, x: Tensor, state: Any, ctx: Pass) -> tuple[Tensor, Any]:
        """l [B, T, N] in the state's precision, and the context's state."""
        h = self.down(x)
        path, ctx.path = ctx.path, f"{ctx.path}.context"
        context, state = self.context(h, state, ctx)
        ctx.path = path
        return self.router.project(h + context, dtype=self.state_dtype), state

    def _strengthen(self, logits: Tensor, strength: Tensor, ctx: Pass) -> tuple[Tensor, Tensor]:
        """s_t at every token [B, T, N] and after the last [B, N]; padding changes no strength."""
        used = self.config.rate * one_hot(self.pool.routing.choose(logits, ctx), logits)
        decay = torch.full_like(used, self.config.decay)
        if ctx.mask is not None:
            used = used * ctx.mask[..., None]
            decay = torch.where(ctx.mask[..., None], decay, 1.0)
        return linear_scan(decay, used, strength)

    def state_bytes(self, time: int) -> int:
        strength = self.config.experts * self.init_state(1, device="meta").strength.element_size()
        return strength + self.context.state_bytes(time)

    def active_parameters(self) -> int:
        own = count_parameters(self) - count_parameters(self.pool)
        inner = count_parameters(self.context) - self.context.active_parameters()
        return own - inner + self.pool.active_parameters()

    def flops(self, time: int) -> float:
        matrices = matrix_size(self.down) + matrix_size(self.router) + self.pool.active_parameters()
        return 2.0 * matrices + self.context.flops(time) + SCAN_FLOPS * self.config.experts
