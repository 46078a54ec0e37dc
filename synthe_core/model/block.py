"""A block: learners in a row, each behind a norm and inside a residual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthe_core.layers import build
from synthe_core.layers.learner import Pass, ResidualSpec, Spec
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.dispatch import compute_dtype
from synthe_core.ops.rms_norm import rms_norm

EPS = 1e-6
NormType = Literal["rms", "layer", "layer_no_bias", "layer_no_affine"]
PRE_NORM = ResidualSpec()


class RMSNorm(nn.Module):
    """The norm before a learner and before the head; under autocast its output has autocast's dtype."""

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, compute_dtype(x))


class LayerNorm(nn.Module):
    """y = (x - mean x) / sqrt(var x + eps) ⊙ weight + bias; under autocast its output has autocast's dtype.

    Source: Ba et al. 2016.
    """

    def __init__(self, width: int, eps: float = EPS, *, affine: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine and bias else None
        self.width, self.eps = width, eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps).to(compute_dtype(x))


NORMS: dict[NormType, Callable[[int, float], RMSNorm | LayerNorm]] = {
    "rms": RMSNorm,
    "layer": LayerNorm,
    "layer_no_bias": partial(LayerNorm, bias=False),
    "layer_no_affine": partial(LayerNorm, affine=False),
}


def residual_of(spec: Any) -> ResidualSpec:
    """How the block adds the learner of a specification."""
    return getattr(spec, "residual", None) or PRE_NORM


class Block(nn.Module):
    """x = x + learner(norm(x)) for each learner in turn that takes part, or as its `residual` says (`ResidualSpec`).
    Its state is the list of their states."""

    emits = schema(
        {
            "added": Emission("B T", "stream", "length of what the learner adds to the stream, over the stream's own"),
            "signal.*": Emission("B T", "confidence", "the signal of that name, as the learner publishes it"),
        }
    )

    def __init__(self, specs: Sequence[Spec], width: int, eps: float = EPS, norm: NormType = "rms") -> None:
        super().__init__()
        self.residuals = [residual_of(spec) for spec in specs]
        self.learners = nn.ModuleList(build(spec, width) for spec in specs)
        before, after = ("pre", "both", "stream"), ("post", "both")
        self.norms = nn.ModuleDict(  # by place: a learner may have none
            {str(place): NORMS[norm](width, eps) for place, each in enumerate(self.residuals) if each.norm in before}
        )
        self.post_norms = nn.ModuleDict(
            {str(place): NORMS[norm](width, eps) for place, each in enumerate(self.residuals) if each.norm in after}
        )

    def init_state(self, batch: int, *, device: Any = "cpu") -> list[Any]:
        return [learner.init_state(batch, device=device) for learner in self.learners]  # type: ignore[operator]

    def forward(self, x: Tensor, states: Sequence[Any], ctx: Pass) -> tuple[Tensor, list[Any]]:
        after = []
        path = ctx.path
        stream, norm = x, ""  # what the last learner read, and the place of its norm
        for place, (residual, learner, state) in enumerate(zip(self.residuals, self.learners, states, strict=True)):
            ctx.path = f"{path}.{place}"
            if not residual.parallel and residual.norm != "shared":
                stream = x
            if str(place) in self.norms:
                norm = str(place)
            if ctx.path in ctx.without:
                ctx.skip_flops(learner.flops(x.shape[1]))  # type: ignore[operator]
            else:
                inputs = self.norms[norm](stream) if residual.norm != "post" else stream.to(compute_dtype(stream))
                before = {} if ctx.trace is None else dict(ctx.signals)
                y, state = learner(_scaled(inputs, residual.input_scale), state, ctx)
                if residual.norm in ("post", "both"):
                    y = self.post_norms[str(place)](y)
                y = _scaled(y, residual.scale)
                if ctx.trace is not None:
                    self._emit(x, y, before, ctx)
                x = _scaled(inputs if residual.norm == "stream" else x, residual.skip) + y
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


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1.0 else x * scale
