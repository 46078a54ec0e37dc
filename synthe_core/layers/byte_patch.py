"""Byte patches: one latent for every few tokens, by a strided convolution. A learner, or the stem of an encoder."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import matrix_size, project_in
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.silu_gate import silu_gate


class BytePatchState(NamedTuple):
    """The last inputs [B, taps - 1, D], and the convolution's value for the last complete patch [B, D]."""

    inputs: Tensor
    current: Tensor


class BytePatch(Learner[BytePatchState]):
    """y_t = LayerNorm(c_t) ⊙ silu(W_g x_t): each token reads the latest complete patch through its own gate.

    Patches are `stride` tokens long and end at the positions p with (p + 1) % stride = 0. There the convolution
    c = Σ_j W_j x_{p-taps+1+j} is taken over the last `taps` inputs (zeros before the text begins), and used until the
    next patch ends; before the first one c = 0. Positions are absolute, so any split of a text has the same patches.

    x [B, T, D]; W [taps, D, D]; state: the last taps - 1 inputs and the current c. This is the causal form, which keeps
    the length of the text. `Stem` is the symmetric one, which shortens it. The convolution of stride 4 over bytes and
    the norm after it are those of TLM's byte-latent encoder.
    """

    class Config(LearnerConfig):
        type: Literal["byte_patch"] = "byte_patch"
        stride: int = Field(4, ge=1, description="tokens a patch")
        taps: int = Field(6, ge=1, description="tokens that a patch's latent is made of, neighbours included")

        @model_validator(mode="after")
        def _every_token_is_read(self) -> BytePatch.Config:
            if self.taps < self.stride:
                raise ValueError(f"{self.taps} taps leave out tokens at stride {self.stride}: taps >= stride")
            return self

    emits = schema({"latents": Emission("B T E", "memory", "a finished patch, root mean square", "rms")})

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.conv = project_in(config.taps * width, width)
        self.norm = nn.LayerNorm(width)
        self.gate = project_in(width, width)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> BytePatchState:
        inputs = torch.zeros(batch, self.config.taps - 1, self.width, dtype=self.state_dtype, device=device)
        return BytePatchState(inputs, inputs.new_zeros(batch, self.width))

    def forward(self, x: Tensor, state: BytePatchState | None, ctx: Pass) -> tuple[Tensor, BytePatchState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        stride, taps, time = self.config.stride, self.config.taps, x.shape[1]
        history = torch.cat([state.inputs, x.to(self.state_dtype)], 1)
        start = ctx.positions[:, :1]
        # Patches end at positions of each row. `patch` counts those that end in this pass; a window that begins at
        # `place` of the history ends at that token of x. One beyond the row's end is read by padding only.
        patch = torch.arange(-(-time // stride), device=x.device)
        place = ((-1 - start) % stride + stride * patch).clamp_max(time - 1)
        window = place[..., None] + torch.arange(taps, device=x.device)
        windows = history.gather(1, window.flatten(1)[..., None].expand(-1, -1, self.width))
        new = self.conv(windows.view(*place.shape, taps * self.width).to(x.dtype)).to(self.state_dtype)
        values = torch.cat([state.current[:, None], new], 1)
        patch_of_token = (ctx.positions + 1) // stride - start // stride
        gain, bias = self.norm.weight.to(self.state_dtype), self.norm.bias.to(self.state_dtype)
        latents = F.layer_norm(values, (self.width,), gain, bias)
        if ctx.trace is not None:
            finished = int(((-1 - start) % stride + stride * patch < time).all(0).sum())
            ctx.emit("latents", latents[:, 1 : 1 + finished], place[:, :finished])
        read = latents.gather(1, patch_of_token[..., None].expand_as(x))
        if ctx.lengths is not None:
            patch_of_token = ((start[:, 0] + ctx.lengths) // stride - start[:, 0] // stride)[:, None]
        current = values.gather(1, patch_of_token[:, -1:, None].expand(-1, -1, self.width))[:, 0]
        return silu_gate(read, self.gate(x)), BytePatchState(ctx.last(history, taps - 1).clone(), current)

    def flops(self, time: int) -> float:
        patches = -(-time // self.config.stride)  # at most: it depends on where the first one ends
        return 2.0 * matrix_size(self.gate) + 2.0 * matrix_size(self.conv) * patches / time


class Stem(nn.Module):
    """LayerNorm of the same convolution at every patch of a text, the window centred on it: [B, T, D] -> [B, ⌈T/s⌉, E].

    For an encoder: patch j covers the tokens s j ... s j + s - 1, and its window reaches (taps - s) / 2 beyond them on
    either side (one more on the right where that is odd). Outside of the text, and where it is padding, are zeros.
    E is D, or `channels`.
    """

    def __init__(self, config: BytePatch.Config, width: int, channels: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.conv = project_in(config.taps * width, channels or width)
        self.norm = nn.LayerNorm(channels or width)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The latents of x, and how many of each row are of real tokens."""
        stride, taps = self.config.stride, self.config.taps
        if lengths is not None:
            x = x * (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        before = (taps - stride) // 2
        x = F.pad(x, (0, 0, before, taps - stride - before + -x.shape[1] % stride))
        windows = x.unfold(1, taps, stride).transpose(2, 3).flatten(2)
        latents = self.norm(self.conv(windows).to(self.norm.weight.dtype))
        return latents, None if lengths is None else -(-lengths // stride)

    def flops(self, time: int) -> float:
        """Floating-point operations per token of a text of `time` tokens."""
        return 2.0 * matrix_size(self.conv) * -(-time // self.config.stride) / time
