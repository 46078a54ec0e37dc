"""Spectral mixing: a learned filter over the whole text, and a gate by each channel's energy."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.momentum import Timescale, log_spaced
from synthe_core.layers.projection import matrix_size, project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.two_sided_convolution import transform_size, two_sided_convolution

ENERGY_EPS = 1e-6  # added to an energy before its logarithm
TRANSFORM = 2.5  # operations of a transform of n real numbers, times n log2 n


class Spectral(Learner[tuple[()]]):
    """y = W_o (z ⊙ g) with z = h * x over the whole text, both ways, and g = σ(w ⊙ log(mean_t z_t² + 1e-6) + b).

    The filter is learned in frequency: its response H is complex, given at K points between 0 and 1/2 cycles a token
    and linear between them. That is the kernel

        h(τ) = irfft(H)[τ mod 2(K-1)] sinc²(τ / 2(K-1)),

    which is known at every lag τ, so one filter serves texts of any length (texts end in zeros, nothing wraps around)
    and padding is inert: rows of different lengths share a pass. It reaches 2(K-1) tokens each way, with a faint rest
    beyond. The imaginary parts at 0 and 1/2 have no effect, as for every real filter.

    The gate is a row's own, one a channel: z's energy is that of its spectrum (Parseval), the mean over real tokens.
    With `gate: token` it is each token's, g_t = σ(‖z_t‖), without weights; with `gate: input`, g_t = σ(W x_t + b),
    one a channel. With `group` m above 1 a filter mixes the channels of a group of m: H is m × m complex numbers at
    each point, z_i = Σ_j h_ij * x_j, with h_ii as without groups and the others 0 at first.

    x [B, T, D]; h by FFT, O(T log T); no state, since a token sees what comes after it. At first the channels are
    exponentials a^|τ| of unit energy with timescales 1 / (1 - a) spread evenly in their logarithm, every second one
    looking anticausal.
    Sources: Rao et al. 2021 (GFNet: learned filters in frequency), TLM (the energy gate). TLM's plan has `gate: token`;
    its code has a matrix of all channels for each frequency (`group` the width), for texts of one length, and either no
    gate or `gate: input`.
    """

    causal = False

    class Config(LearnerConfig):
        type: Literal["spectral"] = "spectral"
        points: int = Field(129, ge=2, description="frequencies at which the filter is learned; reach 2(points - 1)")
        timescales: tuple[Timescale, Timescale] = Field(
            (1.5, 64.0), description="initial timescales of the filters in tokens, shortest and longest"
        )
        gate: Literal["energy", "token", "input"] = Field(
            "energy", description="energy: of a channel over the text; token: the length of a token; input: a map of it"
        )
        group: int = Field(1, ge=1, description="channels that a filter mixes; the width must be a multiple")

    emits = schema(
        {
            "energy": Emission("B E", "memory", "mean square of each channel's filter output"),
            "gate": Emission("B E", "gates", "gate of each channel, by its energy"),
            "token_gate": Emission("B T E", "gates", "gate of a token, mean over channels", "mean"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        decay = 1 - log_spaced(config.timescales, width).reciprocal()[:, None]
        # the device is named because transformers may replace torch.linspace, which then ignores the default device
        turn = torch.linspace(0, math.pi, config.points, device=decay.device)
        anticausal = torch.arange(width)[:, None] % 2 == 1
        delay = torch.polar(torch.ones_like(turn), torch.where(anticausal, turn, -turn))
        response = (1 - decay.square()).sqrt() / (1 - decay * delay)  # of sqrt(1 - a²) a^|τ| on one side
        response = torch.view_as_real(response).clone()  # [D, K, 2]
        if width % config.group:
            raise InputError(
                f"spectral: width {width} is not divisible by group {config.group}",
                nearest_divisor(width, config.group, "group"),
            )
        if config.group > 1:  # [D, m, K, 2]: of each channel's output, the response to the channels of its group
            own = torch.arange(width)
            mixed = response.new_zeros(width, config.group, *response.shape[1:])
            mixed[own, own % config.group] = response
            response = mixed
        self.response = nn.Parameter(response)
        if config.gate == "energy":
            self.energy_weight = nn.Parameter(torch.zeros(width))
            self.bias = nn.Parameter(torch.zeros(width))
        elif config.gate == "input":
            self.gate = project_in(width, width, bias=True)
        self.out = project_out(width, width)

    def init_state(self, batch: int, *, device: object = "cpu") -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()] | None, ctx: Pass) -> tuple[Tensor, tuple[()]]:
        inputs = x.to(self.state_dtype)
        if ctx.mask is not None:
            inputs = inputs.masked_fill(~ctx.mask[..., None], 0.0)
        filtered = self._filtered(inputs)
        gate = self._gate(x, filtered, ctx)
        return self.out((filtered * gate).to(x.dtype)), ()

    def _filtered(self, inputs: Tensor) -> Tensor:
        """z [B, T, D]."""
        time, group = inputs.shape[1], self.config.group
        kernel = self.kernel(time)
        if group == 1:
            return two_sided_convolution(inputs, kernel)
        groups = inputs.unflatten(-1, (-1, group))
        parts = []
        for place in range(group):  # what each channel gets from the channel at `place` of its group
            source = groups[..., place, None].expand_as(groups).flatten(2)
            parts.append(two_sided_convolution(source, kernel[:, place]))
        return torch.stack(parts).sum(0)

    def _gate(self, x: Tensor, filtered: Tensor, ctx: Pass) -> Tensor:
        """g, which broadcasts to [B, T, D]."""
        kind = self.config.gate
        if kind == "input":
            gate = sigmoid(self.gate(x).to(filtered.dtype))
            ctx.emit("token_gate", gate)
            return gate
        if kind == "token":
            gate = sigmoid((filtered.square().sum(-1, keepdim=True) + ENERGY_EPS).sqrt())
            ctx.emit("token_gate", gate)
            return gate
        if ctx.mask is None:
            energy = filtered.square().mean(1)
        else:
            real = filtered.masked_fill(~ctx.mask[..., None], 0.0)
            energy = real.square().sum(1) / ctx.mask.sum(1, keepdim=True).clamp_min(1)
        gate = sigmoid(self.energy_weight * (energy + ENERGY_EPS).log() + self.bias)
        ctx.emit("energy", energy)
        ctx.emit("gate", gate)
        return gate[:, None]

    def kernel(self, time: int) -> Tensor:
        """h at the lags -(time - 1) ... time - 1: [D, 2 time - 1], or of groups [D, m, 2 time - 1]."""
        period = 2 * (self.config.points - 1)
        response = self.response.to(self.state_dtype)
        waves = torch.fft.irfft(torch.view_as_complex(response), period)
        lags = torch.arange(1 - time, time, device=response.device)
        return waves[..., lags % period] * torch.sinc(lags.to(response.dtype) / period).square()

    def flops(self, time: int) -> float:
        size, group = transform_size(2 * time - 1), self.config.group
        transforms = 2 * TRANSFORM * size * math.log2(size)  # there and back; the filter's own is once a batch
        matrices = matrix_size(self.out) + (matrix_size(self.gate) if self.config.gate == "input" else 0)
        return 2.0 * matrices + self.width * group * (transforms + 3 * size) / time
