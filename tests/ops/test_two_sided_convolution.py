"""The convolution over the whole text against numpy's, and the sizes of its transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.ops.dispatch import use_kernels
from synthe_core.ops.two_sided_convolution import transform_size, two_sided_convolution


@pytest.mark.parametrize("kernel", ["reference", "fft"])
@pytest.mark.parametrize("time", [1, 2, 7, 64, 65])
def test_it_is_numpys_convolution(kernel, time):
    torch.manual_seed(0)
    x = torch.randn(2, time, 3, dtype=torch.float64)
    h = torch.randn(3, 2 * time - 1, dtype=torch.float64)
    with use_kernels(two_sided_convolution=kernel):
        y = two_sided_convolution(x, h)
    for row in range(2):
        for channel in range(3):
            full = np.convolve(x[row, :, channel].numpy(), h[channel].numpy())
            np.testing.assert_allclose(
                y[row, :, channel].numpy(), full[time - 1 : 2 * time - 1], rtol=1e-10, atol=1e-12
            )


@pytest.mark.parametrize("kernel", ["reference", "fft"])
def test_gradients_are_the_slopes(kernel):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    with use_kernels(two_sided_convolution=kernel):
        assert torch.autograd.gradcheck(two_sided_convolution, (x, h))


def test_transforms_are_long_enough_and_hardly_longer():
    for least in range(1, 3000):
        size = transform_size(least)
        assert least <= size <= max(least + 1, 1.34 * least)
        while size % 2 == 0:
            size //= 2
        assert size in (1, 3, 5)


def test_narrow_types_are_refused():
    with pytest.raises(InputError, match="float32 or float64"), use_kernels(two_sided_convolution="reference"):
        two_sided_convolution(torch.zeros(1, 2, 1, dtype=torch.bfloat16), torch.zeros(1, 3, dtype=torch.bfloat16))
