"""Linear maps with the initial values that learners use: they are set here, once, and nothing overwrites them."""

from __future__ import annotations

from torch import nn

OUTPUT_GAIN = 0.5  # what a learner adds to the residual stream starts at half the scale of what it reads


def project_in(width: int, features: int, bias: bool = False) -> nn.Linear:
    """A map from the block's width, initial weights normal with standard deviation width^-1/2, a bias of zeros."""
    return _linear(width, features, gain=1.0, bias=bias)


def project_out(features: int, width: int, bias: bool = False) -> nn.Linear:
    """A map back into the residual stream, initial weights normal with standard deviation features^-1/2 / 2."""
    return _linear(features, width, gain=OUTPUT_GAIN, bias=bias)


def _linear(inputs: int, outputs: int, gain: float, bias: bool) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(linear.weight, std=gain * inputs**-0.5)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
