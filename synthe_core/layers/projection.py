"""Linear maps with the initial values that learners use: they are set here, once, and nothing overwrites them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synthe_core.ops.linear import linear

OUTPUT_GAIN = 0.5  # what a learner adds to the residual stream starts at half the scale of what it reads


class Linear(nn.Linear):
    """y = W x + b by the operator `linear`; `project` is a part of it, for learners that need one: adapters reach every
    such call, and none that reads `weight`."""

    @classmethod
    def sharing(cls, base: nn.Linear) -> Linear:
        """The map of `base`, with the same parameters."""
        shared = cls(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        shared.weight, shared.bias = base.weight, base.bias
        return shared.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def project(
        self, x: Tensor, outputs: slice | None = None, *, bias: bool = True, dtype: torch.dtype | None = None
    ) -> Tensor:
        """y [..., O] of x [..., I]: only some `outputs`, without the bias, or computed in `dtype` whatever autocast
        says."""
        return product(x, self.weight, self.bias if bias else None, outputs, dtype)


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, outputs: slice | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """W x + b, or the `outputs` of it; in `dtype` without autocast where one is given."""
    if outputs is not None:
        weight, bias = weight[outputs], None if bias is None else bias[outputs]
    if dtype is None:
        return linear(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def matrix_size(module: nn.Module) -> int:
    """The numbers of a linear map's matrix; `weight` of one with an adapter would be computed for that."""
    assert isinstance(module, nn.Linear)
    return module.in_features * module.out_features


def project_in(width: int, features: int, bias: bool = False) -> Linear:
    """A map from the block's width, initial weights normal with standard deviation width^-1/2, a bias of zeros."""
    return _linear(width, features, gain=1.0, bias=bias)


def project_out(features: int, width: int, bias: bool = False) -> Linear:
    """A map back into the residual stream, initial weights normal with standard deviation features^-1/2 / 2."""
    return _linear(features, width, gain=OUTPUT_GAIN, bias=bias)


def _linear(inputs: int, outputs: int, gain: float, bias: bool) -> Linear:
    projection = Linear(inputs, outputs, bias=bias)
    nn.init.normal_(projection.weight, std=gain * inputs**-0.5)
    if bias:
        nn.init.zeros_(projection.bias)
    return projection
