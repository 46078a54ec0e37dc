"""A block: learners in a row, each behind a norm and inside a residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.layers import build
from synthe_core.layers.learner import Pass, Spec
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.dispatch import compute_dtype
from synthe_core.ops.rms_norm import rms_norm

EPS = 1e-6


class RMSNorm(nn.Module):
    """The norm before a learner and before the head; under autocast its output has autocast's dtype."""

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, compute_dtype(x))


class Block(nn.Module):
    """x = x + learner(norm(x)) for each learner in turn that takes part. Its state is the list of their states."""

    emits = schema(
        {
            "added": Emission("B T", "stream", "length of what the learner adds to the stream, over the stream's own"),
            "signal.*": Emission("B T", "confidence", "the signal of that name, as the learner publishes it"),
        }
    )

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
                ctx.skip_flops(learner.flops(x.shape[1]))  # type: ignore[operator]
            else:
                before = {} if ctx.trace is None else dict(ctx.signals)
                y, state = learner(norm(x), state, ctx)
                if ctx.trace is not None:
                    self._emit(x, y, before, ctx)
                x = x + y
            after.append(state)
        ctx.path = path
        return x, after

    @torch.no_grad()
    def _emit(self, x: Tensor, y: Tensor, before: dict[str, Tensor], ctx: Pass) -> None:
        """What a learner adds to the stream, and the signals that it publishes."""
        ctx.emit("added", y.float().norm(dim=-1) / x.float().norm(dim=-1).clamp_min(EPS))
        for name, signal in ctx.signals.items():
            if signal is not before.get(name):
                ctx.emit(f"signal.{name}", signal)
