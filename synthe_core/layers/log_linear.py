"""Log-linear attention: the memory of `delta` or `mamba2` as a hierarchy of states, one for each power of two."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.delta import Delta, DeltaState
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.mamba import MambaState
from synthe_core.layers.mamba2 import Mamba2
from synthe_core.layers.projection import matrix_size, project_in
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import softplus
from synthe_core.ops.log_linear_attention import log_linear_attention

Over = Annotated[
    Delta.Config | Mamba2.Config,
    BeforeValidator(lambda entry: {"type": entry} if isinstance(entry, str) else entry),
    Field(discriminator="type"),
]


class LogLinear(Learner[DeltaState | MambaState]):
    """o_t = Σ_l λ_tl S_tlᵀ q_t, where S_l is the memory of `over` over the writes of one block of a Fenwick tree.

    x [B, T, D]. The learner `over`, `delta` or `mamba2`, makes queries, keys, values and gates of x, and whatever
    follows the reading. Its memory S is split by age: S_0 holds the present token's write and S_l those of 2^(l-1)
    tokens, each block older and longer than the one before; decays and erasures reach all of them.
    `log_linear_attention` has the recurrence. λ = softplus(L ⊙ (W x)) >= 0 weighs the levels, per head and token, L
    initially 1: with all λ equal it is `over` itself.

    Blocks begin at absolute positions. With `levels` states, blocks are distinct up to 2^(levels - 2) tokens, and the
    last holds all that is older. The state is that of `over` with `levels` memories.

    Source: Guo et al. 2025, "Log-linear attention".
    """

    class Config(LearnerConfig):
        type: Literal["log_linear"] = "log_linear"
        over: Over = Field(
            default_factory=Delta.Config,
            description="whose memory it is: delta or mamba2, or one with its keys, such as {type: delta, heads: 4}",
        )
        levels: int = Field(12, ge=2, le=24, description="states; the last holds all beyond 2^(levels - 2) tokens")

    emits = schema(
        {
            **Delta.emits,
            **Mamba2.emits,
            "level": Emission("B T H", "gates", "mean level that is read, by weight: 0 is the token, l 2^(l-1) tokens"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        over = config.over
        if isinstance(over, Delta.Config) and (over.householder > 1 or over.signals):
            raise InputError(
                "log_linear: a delta rule of one step a token without signals is needed",
                "leave out over.householder and over.signals",
            )
        if over.residual is not None:
            raise InputError("log_linear: the residual of `over` is never added", "move it to log_linear itself")
        self.over: Delta | Mamba2
        if isinstance(over, Delta.Config):
            self.over = Delta(over, width)
            self.heads, self.numbers = self.over.value_heads, self.over.key * self.over.value
        else:
            self.over = Mamba2(over, width)
            self.heads, self.numbers = self.over.heads, over.state_size * over.head_size
        self.level = project_in(width, self.heads * config.levels)
        self.L = nn.Parameter(torch.ones(self.heads, config.levels))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> DeltaState | MambaState:
        state = self.over.init_state(batch, device=device)
        memory = state[0].new_zeros(*state[0].shape[:2], self.config.levels, *state[0].shape[2:])
        return type(state)(memory, state[1])

    def forward(
        self, x: Tensor, state: DeltaState | MambaState | None, ctx: Pass
    ) -> tuple[Tensor, DeltaState | MambaState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        levels, overwrite = self.level(x), getattr(self.config.over, "overwrite", False)
        with torch.autocast(x.device.type, enabled=False):
            weights = softplus(levels.to(self.state_dtype).unflatten(-1, self.L.shape) * self.L.to(self.state_dtype))
            if ctx.trace is not None:
                number = torch.arange(self.config.levels, device=x.device, dtype=weights.dtype)
                ctx.emit("level", (weights * number).sum(-1) / weights.sum(-1))
        positions = self._positions(ctx)

        def rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, memory: Tensor) -> Any:
            return log_linear_attention(q, k, v, beta, log_decay, weights, positions, memory, overwrite)

        return self.over(x, state, ctx, rule)

    @staticmethod
    def _positions(ctx: Pass) -> Tensor:
        """int64 [B, 1 + T]: of the token before the first and of each; padding has that of the last real one."""
        positions = torch.cat([ctx.positions[:, :1] - 1, ctx.positions], 1)
        if ctx.lengths is None:
            return positions
        return torch.minimum(positions, positions[:, :1] + ctx.lengths[:, None])

    @property
    def alignment(self) -> int | None:
        return None  # a single token is read otherwise than many

    def flops(self, time: int) -> float:
        """Those of `over` and of the levels' matrix; its memory's are done for every level, and one addition a number
        to merge and read levels. A write is one state's."""
        erases = 4 if getattr(self.config.over, "overwrite", False) else 0
        decays = 1 if getattr(self.config.over, "decay", True) else 0
        single = 4 + erases // 2 + decays  # counted by `over`
        several = self.config.levels * (3 + erases + decays) + 2
        matrices = 2.0 * matrix_size(self.level)
        return self.over.flops(time) + matrices + float((several - single) * self.heads * self.numbers)
