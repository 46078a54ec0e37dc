"""A block: learners in a row, each behind a norm and inside a residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.layers import build
from synthe_core.learner import Pass, Spec
from synthe_core.ops.dispatch import compute_dtype
from synthe_core.ops.rms_norm import rms_norm

EPS = 1e-6


class RMSNorm(nn.Module):
    """The norm before a learner and before the head; under autocast it gives the narrow type that matrices read."""

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, compute_dtype(x))


class Block(nn.Module):
    """x = x + learner(norm(x)) for each learner in turn that takes part. Its state is the list of theirs."""

    def __init__(self, specs: Sequence[Spec], width: int, eps: float = EPS) -> None:
        super().__init__()
        self.learners = nn.ModuleList(build(spec, width) for spec in specs)
        self.norms = nn.ModuleList(RMSNorm(width, eps) for _ in specs)

    def init_state(self, batch: int, *, device: Any = "cpu") -> list[Any]:
        return [learner.init_state(batch, device=device) for learner in self.learners]  # type: ignore[operator]

    def forward(self, x: Tensor, states: Sequence[Any], ctx: Pass) -> tuple[Tensor, list[Any]]:
        after = []
        path = ctx.path
        for index, (norm, learner, state) in enumerate(zip(self.norms, self.learners, states, strict=True)):
            ctx.path = f"{path}.{index}"
            if ctx.path in ctx.without:
                ctx.spare(learner.flops(x.shape[1]))  # type: ignore[operator]
            else:
                y, state = learner(norm(x), state, ctx)
                x = x + y
            after.append(state)
        ctx.path = path
        return x, after
