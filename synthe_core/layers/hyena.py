"""Hyena: a long convolution whose filter is a function of the lag, between two gates."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.adapter_batch import per_adapter, slots_of
from synthe_core.layers.derived_tensor import DerivedTensor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import matrix_size, project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.linear import linear
from synthe_core.ops.long_conv import long_conv
from synthe_core.ops.short_conv import short_conv, with_history
from synthe_core.quantization.matrix import count_parameters

TAPS = 3  # of the short convolution before the gates
WINDOW_END = 0.01  # value of a filter's window at the lag that `decay` gives


class HyenaState(NamedTuple):
    """The last inputs of the two convolutions: short [B, 2, 3D] and long [B, L-1, D]."""

    short: Tensor
    long: Tensor


class Hyena(Learner[HyenaState]):
    """y_t = W_o (x²_t ⊙ Σ_{j < L} h_j ⊙ u_{t-j}), u = x¹ ⊙ v, where v, x¹, x² = W x + b, each passed through a causal
    convolution of 3 taps.

    x [B, T, D]. The filter h [D, L] is implicit: h_j = window_j ⊙ MLP(features of j / L), plus a weight of its own on
    the present token (lag 0). The MLP has sines for activations, of learned frequencies that start at `frequency`;
    the features are j / L and the cosines and sines of 2π f j / L for f = 1 ... `bands`. The window is
    exp(-α j / L) + shift with a rate α for each channel, evenly spaced so that the windows fade to 1/100 from decay[0]
    to decay[1] times L. Windows have length 1 over the lags, so that a filter's output starts with about half the
    power of its input, and the present token's weight with the other half.

    The state is what a finite filter needs: the last L-1 of u and the last 2 inputs of the short convolution, both in
    float32. In training every pass computes the filter again; without gradients it is computed once, and again after a
    weight has changed.

    A filter may fail to train with a high `frequency`, where it starts as noise: copying the token 7 back (length 64)
    took 100 steps from 2, and 600 were not enough from 10.

    Source: Poli et al. 2023 (order 2), with the windows of its code.
    """

    class Config(LearnerConfig):
        type: Literal["hyena"] = "hyena"
        length: int = Field(1024, ge=2, description="tokens that the filter reaches back over, the present included")
        filter_width: int = Field(64, ge=1, description="hidden units of the network that computes the filter")
        filter_layers: int = Field(3, ge=1, le=100, description="layers of sines in that network")
        bands: int | None = Field(
            None, ge=1, description="frequencies in its positional features; default a 16th of length"
        )
        frequency: float = Field(2.0, gt=0, description="initial frequency of the sines; lower makes smoother filters")
        decay: tuple[float, float] = Field(
            (0.3, 1.5), description="where the fastest and the slowest window have faded to 1/100, as a part of length"
        )
        shift: float = Field(
            0.0, ge=0, description="what the windows fade to; above 0 nothing is forgotten within length"
        )

    emits = schema(
        {
            "filter": Emission("E L", "memory", "the convolution's taps by lag", "rms"),
            "read": Emission("B T E", "memory", "what goes into the long convolution, root mean square", "rms"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        if not 0 < config.decay[0] <= config.decay[1]:
            raise InputError(
                f"hyena: decay must be two positive numbers, the fast one first, not {list(config.decay)}",
                "the published windows are [0.3, 1.5]",
            )
        hidden = config.filter_width
        self.bands = config.bands or max(config.length // 16, 1)
        self.project = project_in(width, 3 * width, bias=True)
        self.out = project_out(width, width)
        # Taps of length 1 on average keep the scale; uniform, some channels see the present, some the tokens before.
        self.conv = nn.Parameter(torch.empty(3 * width, TAPS).uniform_(-1, 1).mul_((3 / TAPS) ** 0.5))
        sizes = [1 + 2 * self.bands, *[hidden] * config.filter_layers]
        hidden_layers = [project_in(*pair, bias=True) for pair in pairwise(sizes)]
        for layer in hidden_layers:
            nn.init.uniform_(layer.bias, -1, 1)  # sines of different phases
        self.filter_hidden = nn.ModuleList(hidden_layers)
        self.filter_frequency = nn.Parameter(torch.full((config.filter_layers, hidden), config.frequency))
        self.filter_out = nn.Parameter(torch.randn(width, hidden).mul_(hidden**-0.5))
        self.D = nn.Parameter(torch.randn(width).mul_(0.5**0.5))
        self._derived_filter = DerivedTensor()

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> HyenaState:
        sizes = ((batch, TAPS - 1, 3 * self.width), (batch, self.config.length - 1, self.width))
        return HyenaState(*(torch.zeros(size, dtype=self.state_dtype, device=device) for size in sizes))

    def forward(self, x: Tensor, state: HyenaState | None, ctx: Pass) -> tuple[Tensor, HyenaState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        projected = self.project(x)
        with torch.autocast(x.device.type, enabled=False):
            projected = projected.to(self.state_dtype)
            mixed, short = short_conv(projected, self.conv.to(self.state_dtype), state.short, silu=False)
            v, before, after = mixed.chunk(3, dim=-1)
            u = before * v
            ctx.emit("read", u)
            read, long = per_adapter(self.filter_hidden, partial(self._convolve, ctx), u, state.long)
            if ctx.lengths is not None:
                short = ctx.last(with_history(projected, state.short, TAPS), TAPS - 1)
                long = ctx.last(with_history(u, state.long, self.config.length), self.config.length - 1)
            y = (after * read).to(x.dtype)
        return self.out(y), HyenaState(short, long)

    def _convolve(self, ctx: Pass, u: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """The long convolution, by the filter that all rows of u share."""
        adapted = any(slots_of(layer) for layer in self.filter_hidden)  # then it depends on the adapter of the pass
        taps = self.filter() if adapted else self._derived_filter.get(self._filter_weights(), self.filter)
        ctx.emit("filter", taps)
        return long_conv(u, taps, before)

    def _filter_weights(self) -> list[Tensor]:
        layers = self.filter_hidden
        return [*layers.parameters(), *layers.buffers(), self.filter_frequency, self.filter_out, self.D]

    def filter(self) -> Tensor:
        """Every channel's taps [D, L] in the state's type, tap 0 being the present."""
        config, dtype, device = self.config, self.state_dtype, self.D.device
        lags = torch.arange(config.length, dtype=dtype, device=device)[:, None]
        part = lags / (config.length - 1)
        angles = 2 * math.pi / config.length * lags * torch.arange(1, self.bands + 1, dtype=dtype, device=device)
        z = torch.cat([part, angles.cos(), angles.sin()], dim=1)
        hidden: Any = self.filter_hidden  # torch types the entries of a ModuleList as Module
        for layer, frequency in zip(hidden, self.filter_frequency, strict=True):
            z = torch.sin(frequency.to(dtype) * linear(z, layer.weight.to(dtype), layer.bias.to(dtype)))
        fastest, slowest = (-math.log(WINDOW_END) / fraction for fraction in config.decay)
        rates = torch.linspace(slowest, fastest, self.width, dtype=dtype, device=device)
        window = (-rates * part).exp_().add_(config.shift)
        size = window.square().sum(0).sqrt()
        taps = linear(z, self.filter_out.to(dtype) / size[:, None]) * window
        taps[0] += self.D.to(dtype)
        return taps.t()

    def flops(self, time: int) -> float:
        """The matrices, the filter's network once a pass of training, and the convolution as the sum that defines it:
        two operations for every input that a token's filter reaches on average."""
        length = self.config.length
        reached = min(length, time)
        taps = reached - reached * (reached - 1) / (2 * time)
        network = count_parameters(self.filter_hidden) + self.filter_out.numel()
        mixing = matrix_size(self.project) + matrix_size(self.out) + self.conv.numel()
        return 2 * mixing + 2 * network * length / time + (2.0 * taps + 2) * self.width
