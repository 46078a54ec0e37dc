"""A language model: embedding, blocks of learners, norm, head."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from synthe_core.layers import LearnerSpec
from synthe_core.learner import Learner, Pass, Spec
from synthe_core.model.block import EPS, Block, RMSNorm
from synthe_core.ops.cross_entropy import linear_cross_entropy
from synthe_core.trace import Trace

EMBEDDING_STD = 0.02


class ModelSpec(Spec):
    """The shape of a model: `block` is the list of learners, repeated `blocks` times."""

    width: int = Field(..., ge=1, description="channels of the residual stream")
    blocks: int = Field(..., ge=1, description="how many times the block is repeated")
    block: list[LearnerSpec] = Field(..., min_length=1, description="the learners of a block, in order")
    tie: bool = Field(True, description="one matrix for the embedding and the head")


class ModelState(NamedTuple):
    """What a model remembers: how many tokens each row has seen, int64 [B], and every learner's state."""

    position: Tensor
    blocks: list[list[Any]]


class Loss(NamedTuple):
    """`total` nats over `scored` tokens (differentiable), `auxiliary` losses, and `each` token's loss [B, T]."""

    total: Tensor
    scored: Tensor
    auxiliary: dict[str, Tensor]
    each: Tensor

    @property
    def objective(self) -> Tensor:
        """Mean cross-entropy in nats plus the auxiliary losses: what training minimises."""
        mean = self.total / self.scored.clamp_min(1)
        return mean + sum(self.auxiliary.values()) if self.auxiliary else mean


class LanguageModel(nn.Module):
    """Next-token model over `vocab` tokens. One forward for every T: decoding is T = 1, prefill any T.

    With `recompute`, blocks keep only their inputs for the backward pass and run again there (Chen et al. 2016).
    """

    def __init__(self, spec: ModelSpec, vocab: int, recompute: bool = False) -> None:
        super().__init__()
        self.spec, self.vocab, self.recompute = spec, vocab, recompute
        self.embedding = nn.Embedding(vocab, spec.width)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.blocks = nn.ModuleList(Block(spec.block, spec.width) for _ in range(spec.blocks))
        self.norm = RMSNorm(spec.width)
        self.head = nn.Linear(spec.width, vocab, bias=False)
        if spec.tie:
            self.head.weight = self.embedding.weight
        else:
            nn.init.zeros_(self.head.weight)

    def init_state(self, batch: int, *, device: Any = None) -> ModelState:
        """The state of `batch` sequences that have not begun."""
        device = self.embedding.weight.device if device is None else device
        blocks = [block.init_state(batch, device=device) for block in self.blocks]  # type: ignore[operator]
        return ModelState(torch.zeros(batch, dtype=torch.int64, device=device), blocks)

    def hidden(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None, trace: Trace | None = None
    ) -> tuple[Tensor, ModelState, Pass]:
        """The normalised output of the last block, [B, T, D], before the head."""
        state = state or self.init_state(tokens.shape[0])
        ctx = Pass.over(tokens, lengths, state.position, trace)
        # A unit-scale stream, whatever scale the shared embedding needs as a head.
        x = F.rms_norm(self.embedding(tokens), (self.spec.width,), eps=EPS)
        after = []
        for index, (block, remembered) in enumerate(zip(self.blocks, state.blocks, strict=True)):
            ctx.path = f"blocks.{index}"
            if self.recompute and torch.is_grad_enabled():
                x, remembered = checkpoint(block, x, remembered, ctx, use_reentrant=False)
            else:
                x, remembered = block(x, remembered, ctx)
            after.append(remembered)
        seen = tokens.shape[1] if lengths is None else lengths
        return self.norm(x), ModelState(state.position + seen, after), ctx

    def forward(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None, trace: Trace | None = None
    ) -> tuple[Tensor, ModelState]:
        """Logits [B, T, V] of the token after each of `tokens` int64 [B, T], and the state after them."""
        hidden, after, _ = self.hidden(tokens, state, lengths, trace)
        return self.head(hidden), after

    def next_logits(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """Logits [B, V] after the last real token only: what decoding needs of a prompt."""
        hidden, after, ctx = self.hidden(tokens, state, lengths)
        return self.head(ctx.last(hidden, 1)[:, 0]), after

    def loss(
        self, tokens: Tensor, targets: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Loss, ModelState]:
        """Cross-entropy of `targets` int64 [B, T] (-100 = not scored) given the tokens up to each."""
        hidden, after, ctx = self.hidden(tokens, state, lengths)
        total, each = linear_cross_entropy(hidden, self.head.weight, targets)
        auxiliary: dict[str, Tensor] = {}
        for name, value in ctx.losses:
            auxiliary[name] = auxiliary[name] + value if name in auxiliary else value
        return Loss(total, (targets != -100).sum(), auxiliary, each), after

    def flops(self, time: int) -> float:
        """Floating-point operations per token of a forward pass over `time` tokens, counted learner by learner."""
        inner = sum(m.flops(time) for m in self.modules() if isinstance(m, Learner))
        return inner + 2.0 * self.spec.width * self.vocab

    def parameter_count(self) -> int:
        """Distinct parameters; a shared embedding counts once."""
        return sum(p.numel() for p in self.parameters())

    def state_bytes(self, time: int = 1) -> int:
        """Bytes of one sequence's state after `time` tokens: its position, and what every learner remembers."""
        learners = sum(m.state_bytes(time) for m in self.modules() if isinstance(m, Learner))
        return self.init_state(1, device="meta").position.element_size() + learners
