"""A block: learners in a row, each behind a norm and inside a residual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthe_core.layers import build
from synthe_core.layers.learner import Pass, ResidualSpec, Spec
from synthe_core.layers.over_ranks import run_learner
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


class Step(NamedTuple):
    """How a block adds one learner, as `ResidualSpec` says, worked out once.

    norm: the place of the norm that gives its input, None without one. parallel: it reads what the learner before it
    reads. normed_after: a norm follows it. scaled: some factor is not 1.
    """

    place: str
    residual: ResidualSpec
    norm: str | None
    parallel: bool
    normed_after: bool
    scaled: bool


def _steps(residuals: Sequence[ResidualSpec]) -> list[Step]:
    steps: list[Step] = []
    for place, each in enumerate(map(str, range(len(residuals)))):
        residual = residuals[place]
        norm = {"post": None, "shared": steps[-1].norm if steps else each}.get(residual.norm, each)
        parallel = residual.parallel or residual.norm == "shared"
        scaled = (residual.input_scale, residual.scale, residual.skip) != (1.0, 1.0, 1.0)
        steps.append(Step(each, residual, norm, parallel, residual.norm in ("post", "both"), scaled))
    return steps


class OpaquePass:
    """A pass as the hooks of a sharded block get it: of a dataclass they would make a copy, and what the block adds to
    its losses and signals would be lost."""

    def __init__(self, ctx: Pass) -> None:
        self.ctx = ctx


def pass_of(ctx: Pass | OpaquePass) -> Pass:
    return ctx.ctx if isinstance(ctx, OpaquePass) else ctx


class RoutedTokens(Protocol):
    """The tokens that run a block."""

    def run(self, block: Any, x: Tensor, remembered: Sequence[Any], ctx: Pass) -> tuple[Tensor, list[Any]]:
        """The block over these tokens; the others are unchanged."""
        ...


class Block(nn.Module):
    """x = x + learner(norm(x)) for each learner in turn that takes part, or as its `residual` says (`ResidualSpec`).
    Its state is the list of their states.

    sharded: its parameters are gathered by hooks for one call, which is then `routed`, whatever number of calls of
    `forward` a router makes of it.
    """

    sharded = False

    emits = schema(
        {
            "added": Emission("B T", "stream", "length of what the learner adds to the stream, over the stream's own"),
            "signal.*": Emission("B T", "confidence", "the signal of that name, as the learner publishes it"),
        }
    )

    def __init__(self, specs: Sequence[Spec], width: int, eps: float = EPS, norm: NormType = "rms") -> None:
        super().__init__()
        self.learners = nn.ModuleList(build(spec, width) for spec in specs)
        self.steps = _steps([residual_of(spec) for spec in specs])
        before = [step.place for step in self.steps if step.norm == step.place]
        after = [step.place for step in self.steps if step.normed_after]
        # By place: a learner may have none.
        self.norms, self.post_norms = (
            nn.ModuleDict({place: NORMS[norm](width, eps) for place in places}) for places in (before, after)
        )

    def init_state(self, batch: int, *, device: Any = "cpu") -> list[Any]:
        return [learner.init_state(batch, device=device) for learner in self.learners]  # type: ignore[operator]

    def forward(self, x: Tensor, states: Sequence[Any], ctx: Pass | OpaquePass) -> tuple[Tensor, list[Any]]:
        ctx, after = pass_of(ctx), []
        path, norms, without = ctx.path, self.norms, ctx.without
        stream = x  # what the last learner read
        for step, learner, state in zip(self.steps, self.learners, states, strict=True):
            residual = step.residual
            ctx.path = f"{path}.{step.place}"
            if not step.parallel:
                stream = x
            if without and ctx.path in without:
                ctx.skip_flops(learner.flops(x.shape[1]))  # type: ignore[operator]
            else:
                inputs = stream.to(compute_dtype(stream)) if step.norm is None else norms[step.norm](stream)
                before = {} if ctx.trace is None else dict(ctx.signals)
                given = _scaled(inputs, residual.input_scale) if step.scaled else inputs
                y, state = run_learner(learner, given, state, ctx)
                if step.normed_after:
                    y = self.post_norms[step.place](y)
                if step.scaled:
                    y = _scaled(y, residual.scale)
                if ctx.trace is not None:
                    self._emit(x, y, before, ctx)
                base = inputs if residual.norm == "stream" else x
                x = (_scaled(base, residual.skip) if step.scaled else base) + y
            after.append(state)
        ctx.path = path
        return x, after

    def routed(
        self, choice: RoutedTokens, x: Tensor, states: Sequence[Any], ctx: Pass | OpaquePass
    ) -> tuple[Tensor, list[Any]]:
        """The block over some of the tokens, in as many calls as `choice` makes."""
        return choice.run(self.forward if self.sharded else self, x, states, pass_of(ctx))

    @torch.no_grad()
    def _emit(self, x: Tensor, y: Tensor, before: dict[str, Tensor], ctx: Pass) -> None:
        """What a learner adds to the stream, and the signals that it publishes."""
        ctx.emit("added", y.float().norm(dim=-1) / x.float().norm(dim=-1).clamp_min(EPS))
        for name, signal in ctx.signals.items():
            if signal is not before.get(name):
                ctx.emit(f"signal.{name}", signal)


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1.0 else x * scale
