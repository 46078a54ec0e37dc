"""Muon with the matrices of one shape together: the same update as torch's, in a fraction of the launches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from synthe_core.model.sharded_tensors import gathered, local, shard_of

STACK_BYTES = 256 << 20
"""Of the bfloat16 matrices that are orthogonalised at a time: each of the iteration's three products has as many."""


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon`, whose Newton-Schulz iteration runs over stacks of matrices of one shape.

        M' = M + (1 - μ) (G - M),  U = orthogonalise(G + μ (M' - G)),  W' = (1 - η λ) W - η 0.2 sqrt(max(rows, cols)) U

    η learning rate, λ weight decay, μ momentum; the factor of U is that of `adjust_lr_fn`. Products of a stack round as
    those of its matrices do, up to the order of sums. Of sharded parameters the momentum is sharded, and the updates of
    a stack are gathered in turn. Sources: Jordan et al. 2024 (Muon), Liu et al. 2025 (the scale).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step for every parameter with a gradient."""
        assert closure is None, "the trainer computes gradients before the step"
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            buffers: list[Tensor] = []
            self._init_group(group, parameters, gradients, buffers)
            if parameters:
                self._step_group(group, parameters, gradients, buffers)

    def _step_group(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], buffers: list[Tensor]
    ) -> None:
        momentum, rate = group["momentum"], float(group["lr"])
        own, grads, means = (list(map(local, each)) for each in (parameters, gradients, buffers))
        torch._foreach_lerp_(means, grads, 1 - momentum)
        updates = list(torch._foreach_lerp(grads, means, momentum)) if group["nesterov"] else means
        torch._foreach_mul_(own, 1 - rate * group["weight_decay"])
        for stack in stacks(parameters):
            whole = [gathered(updates[i], parameters[i]) for i in stack]
            made = orthogonalise(whole, group["ns_coefficients"], group["ns_steps"], group["eps"])
            scale = rate * _rate_factor(group["adjust_lr_fn"], parameters[stack[0]].shape)
            shards = [shard_of(each, parameters[i]) for each, i in zip(made, stack, strict=True)]
            torch._foreach_add_([own[i] for i in stack], shards, alpha=-scale)


def stacks(matrices: list[Tensor]) -> Iterator[list[int]]:
    """The indices of matrices of one shape, in stacks of at most STACK_BYTES in bfloat16."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(tuple(matrix.shape), []).append(index)
    for shape, indices in by_shape.items():
        count = max(1, STACK_BYTES // (2 * math.prod(shape)))
        for first in range(0, len(indices), count):
            yield indices[first : first + count]


def orthogonalise(
    matrices: list[Tensor], coefficients: tuple[float, float, float], steps: int, eps: float
) -> tuple[Tensor, ...]:
    """Of each matrix [m, n] about the factor U V^T of its singular value decomposition, computed in bfloat16.

    The quintic Newton-Schulz iteration X' = a X + (b A + c A²) X with A = X X^T, from X of norm 1.
    """
    a, b, c = coefficients
    stack = torch.stack(matrices).bfloat16()
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return (x.mT if tall else x).to(matrices[0].dtype).unbind(0)


def _rate_factor(name: str | None, shape: torch.Size) -> float:
    """What the learning rate is multiplied by for a matrix of that shape."""
    rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if name == "match_rms_adamw" else math.sqrt(max(1, rows / columns))
