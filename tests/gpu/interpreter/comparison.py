"""A kernel against its operator's reference: outputs, final state and the gradient of every argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def draws(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Functions of a shape: normal numbers, and uniform ones in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal, uniform


def leaves(result: Any) -> list[Tensor]:
    """The floating-point tensors of a result, in order."""
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    return [leaf for part in result if part is not None for leaf in leaves(part)]


def outcome(fn: Callable[..., Any], arguments: dict[str, Any], constants: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The outputs, and the gradient of a random projection of them for every tensor that is not among `constants`."""
    values = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point() and name not in constants:
            values[name] = value.detach().clone().requires_grad_()
    outputs = leaves(fn(**values))
    generator = torch.Generator().manual_seed(1)
    total = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)).sum()
        for out in outputs
        if out.requires_grad
    )
    wanted = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.requires_grad}
    results = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    if not wanted:
        return results
    gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return results | {f"d {name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}


def assert_equal(
    op: Any, kernel: str, arguments: dict[str, Any], tolerance: float, constants: tuple[str, ...] = ()
) -> None:
    """Every number of the kernel within `tolerance` of the largest of its tensor in the reference."""
    actual = outcome(op.named(kernel), arguments, constants)
    expected = outcome(op.reference, arguments, constants)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].shape == tensor.shape and actual[name].dtype == tensor.dtype, name
        if not tensor.numel():
            continue
        assert actual[name].isfinite().all(), f"{name} is not finite"
        error = (actual[name].double() - tensor.double()).abs().max() / tensor.abs().max().double().clamp_min(1e-30)
        assert error <= tolerance, f"{op.name}/{kernel}, {name}: relative error {error:.1e}"
