"""A convolution over the whole text, before and after each token: an encoder's. O(T log T) by FFT."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.ops.dispatch import op, require_float


@op
def two_sided_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """y_t = Σ_s kernel[:, T - 1 + t - s] ⊙ x_s: channel by channel, zeros around the text.

    x [B, T, D]; kernel [D, 2T - 1], from the one that reaches T - 1 tokens ahead (the past's weight is the last).
    Returns y [B, T, D].
    """
    require_float("x", x)
    steps = torch.arange(x.shape[1], device=x.device)
    matrix = kernel[:, x.shape[1] - 1 + steps[:, None] - steps]  # [D, T, S], the lag t - s
    return torch.einsum("dts,bsd->btd", matrix, x)


@two_sided_convolution.kernel("fft", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def by_fft(x: Tensor, kernel: Tensor) -> Tensor:
    """A product of spectra, of texts padded with zeros so far that nothing comes round from the other end."""
    time = x.shape[1]
    size = transform_size(2 * time - 1)
    circular = torch.cat(  # lag 0 first, the negative lags at the end
        [kernel[:, time - 1 :], kernel.new_zeros(kernel.shape[0], size - 2 * time + 1), kernel[:, : time - 1]], 1
    )
    spectrum = torch.fft.rfft(x.transpose(1, 2), size) * torch.fft.rfft(circular, size)
    return torch.fft.irfft(spectrum, size)[..., :time].transpose(1, 2)


def transform_size(least: int) -> int:
    """The smallest 2^k, 3 2^k or 5 2^k that is at least `least`: lengths that transforms are fast at."""
    power = 1 << max(least - 1, 0).bit_length()
    return min(size for size in (power, 3 * power // 4, 5 * power // 8) if size >= least)
