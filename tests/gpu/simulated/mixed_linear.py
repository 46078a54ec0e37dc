"""Gradients of a map under autocast on the simulated device, in a process of its own; prints a JSON line.

A map's matrix is cast once for two passes, and its gradient is not rounded to 16 bits.
"""

from __future__ import annotations

import json

from tests.gpu.simulated import machine  # isort: skip  # noqa: F401  (before torch)

import torch

from synthe_core.layers.projection import Linear
from synthe_core.ops.mixed_linear import cast_once
from tests.gpu.simulated.counts import counting
from tests.gpu.simulated.tensor import on_device, simulated, to_device


def main() -> None:
    torch.manual_seed(0)
    linear = to_device(Linear(24, 20))
    plain = Linear(24, 20)
    plain.load_state_dict({name: x.elem for name, x in linear.state_dict().items()})
    inputs = [torch.randn(3, 5, 24).bfloat16().float() for _ in range(2)]
    slopes = [torch.randn(3, 5, 20).bfloat16().float() for _ in range(2)]
    with on_device(), counting() as counts, cast_once(linear.parameters(), torch.bfloat16):
        ours = [simulated(x).requires_grad_() for x in inputs]
        for x, slope in zip(ours, slopes, strict=True):
            with torch.autocast("cuda", torch.bfloat16):
                y = linear(x)
            y.backward(simulated(slope).to(y.dtype))
    matrix = plain.weight.detach().bfloat16().float().requires_grad_()
    theirs = [x.clone().requires_grad_() for x in inputs]
    for x, slope in zip(theirs, slopes, strict=True):
        (x @ matrix.t() + plain.bias.detach()).backward(slope)

    def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
        return float((actual.detach().elem.float() - expected).abs().max() / expected.abs().max())  # type: ignore[attr-defined]

    results = {
        "weight": error(linear.weight.grad, matrix.grad),
        "bias": error(linear.bias.grad, sum(slope.flatten(0, 1).sum(0) for slope in slopes)),
        "input": max(error(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True)),
        "casts of matrices": counts.kernels["_foreach_copy_"],
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
