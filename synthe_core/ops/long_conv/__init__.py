"""A causal depthwise convolution with a filter of hundreds of taps or more, and its faster kernels."""

from synthe_core.ops.long_conv import fft, native
from synthe_core.ops.long_conv.reference import long_conv

__all__ = ["fft", "long_conv", "native"]
