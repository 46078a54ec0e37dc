"""The stem of an encoder at several scales: convolutions of different strides over the same tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.byte_patch import BytePatch, Stem
from synthe_core.layers.learner import Spec


class MultiscaleStem(nn.Module):
    """z_j = Σ_i Stem_i(x) at patch ⌊j s / S_i⌋, for strides s = S_1 < S_2 < ..., or these side by side.

    Each scale is a `Stem`, a LayerNorm of a convolution of stride S_i and S_i + max(1, ⌊S_i / 2⌋) taps. Latents
    come at the shortest stride; a patch of a longer one is that of all the short patches it covers, which are whole
    numbers of them. `sum` adds the scales; `concatenate` gives each an even part of the channels.

    x [B, T, D] -> [B, ⌈T/s⌉, D]. Padding is as zeros, and no scale has latents of padding only.
    Sources: TLM's strided convolution over bytes; several scales: Chen et al. 2021 (CrossViT).
    """

    class Config(Spec):
        strides: tuple[int, ...] = Field(
            ..., min_length=2, max_length=8, description="tokens of a patch at each scale, each a multiple of the first"
        )
        combine: Literal["sum", "concatenate"] = Field("sum", description="how the scales' latents become one")

        @model_validator(mode="after")
        def _each_covers_whole_patches(self) -> MultiscaleStem.Config:
            first, *others = self.strides
            if first < 1 or list(self.strides) != sorted(set(self.strides)) or any(each % first for each in others):
                message = "strides rise, and each is a multiple of the first, as [2, 4, 8]; not {strides}"
                raise PydanticCustomError("strides", message, {"strides": list(self.strides)})
            return self

        @property
        def stride(self) -> int:
            """Tokens of a latent."""
            return self.strides[0]

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        count = len(config.strides)
        parts = [width] * count
        if config.combine == "concatenate":
            parts = [width // count + (scale < width % count) for scale in range(count)]
        if min(parts) < 1:
            raise InputError(f"patch: {width} channels do not fill {count} scales", "combine: sum, or fewer strides")
        self.scales = nn.ModuleList(
            Stem(BytePatch.Config(stride=stride, taps=stride + max(1, stride // 2)), width, part)
            for stride, part in zip(config.strides, parts, strict=True)
        )

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The latents of x, and how many of each row are of real tokens."""
        first, *_ = self.config.strides
        time = -(-x.shape[1] // first)
        latents, short = self.scales[0](x, lengths)
        every = [latents]
        for stride, scale in zip(self.config.strides[1:], self.scales[1:], strict=True):
            coarse = scale(x, lengths)[0]
            every.append(coarse.repeat_interleave(stride // first, 1)[:, :time])
        if self.config.combine == "sum":
            return torch.stack(every).sum(0), short
        return torch.cat(every, -1), short

    def flops(self, time: int) -> float:
        """Floating-point operations per token of a text of `time` tokens."""
        return sum(scale.flops(time) for scale in self.scales)  # type: ignore[operator]


ONE_STRIDE, STRIDES = "(one stride)", "(strides)"


def _tag(value: Any) -> str:
    several = isinstance(value, MultiscaleStem.Config) or (isinstance(value, dict) and "strides" in value)
    return STRIDES if several else ONE_STRIDE


StemConfig = Annotated[
    Annotated[BytePatch.Config, Tag(ONE_STRIDE)] | Annotated[MultiscaleStem.Config, Tag(STRIDES)], Discriminator(_tag)
]
"""The stem of `model.patch`: `stride` and `taps`, or `strides`."""


def build_stem(config: BytePatch.Config | MultiscaleStem.Config, width: int) -> Stem | MultiscaleStem:
    """The stem of `model.patch`: one stride, or several."""
    return Stem(config, width) if isinstance(config, BytePatch.Config) else MultiscaleStem(config, width)
