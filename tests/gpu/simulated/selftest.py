"""What the simulated device does with one product, as JSON: `python -m tests.gpu.simulated.selftest`"""

from __future__ import annotations

import json

from tests.gpu.simulated import load  # isort: skip  # noqa: F401  (before torch)

import torch

from tests.gpu.simulated.counts import counting
from tests.gpu.simulated.tensor import on_device, simulated


def main() -> None:
    weight = simulated(torch.eye(2)).requires_grad_()
    with on_device(), counting() as counts:
        total = (simulated(torch.ones(3, 2)) @ weight).sum()
        assert float(total) == 6.0
    total.backward()
    assert weight.grad is not None
    try:
        mixed = str(weight + torch.ones(2, 2))
    except RuntimeError as error:
        mixed = str(error)
    waits = [each.partition(" @")[0] for each in counts.waits]
    result = {"launches": dict(counts.kernels), "waits": waits, "mixed": mixed, "gradient": str(weight.grad.device)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
