"""Linear maps of rows: `linear`, `addmm`, `grouped_mm` and `block_linear`, each with a batch-invariant kernel for CPUs.

MKL has products of its own for few rows, so a row's numbers depend on how many rows a product has. Its strict mode has
one product for any number, and costs a single row up to twice the time; it exists on Intel's processors only. On others
the batch-invariant kernels lengthen rows and columns by zeros to full fours, which MKL treats alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.ops.dispatch import primitive
from synthe_core.ops.mixed_linear import mixed_linear, serves

FOUR = 4  # rows and columns of a lengthened product are multiples of it
NARROW = 12  # columns of a thread's share, from which on they round alike


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Torch's; in training under autocast on CUDA with fewer casts."""
    return mixed_linear(x, weight, bias) if x.is_cuda and serves(x, weight) else F.linear(x, weight, bias)


@primitive(_linear)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = W x + b; x [..., I], W [O, I], b [O], y [..., O]."""
    y = (x[..., None, :] * weight).sum(-1)
    return y if bias is None else y + bias


@linear.kernel("batch-invariant", rank=0, tolerance=1e-6, batch_invariant=("cpu",))
def batch_invariant_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Torch's product of matrices, lengthened by zeros to full fours where it depends on its rows.

    Of more dimensions, torch takes a product of batches or of matrices, as the strides happen to be.
    """
    rows, columns = _padding(x, len(weight))
    flat = x.reshape(-1, x.shape[-1])
    if not rows and not columns:
        return F.linear(flat, weight, bias).view(*x.shape[:-1], len(weight))
    padded = F.pad(flat, (0, columns, 0, rows))
    y = F.linear(padded, F.pad(weight, (0, columns)) if columns else weight, bias)
    return y[: len(y) - rows].view(*x.shape[:-1], len(weight))


@primitive(torch.addmm)
def addmm(y: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """β y + α x W of matrices: y [N, O], x [N, I], W [I, O]."""
    return beta * y + alpha * (x[:, :, None] * weight).sum(1)


@addmm.kernel("batch-invariant", rank=0, tolerance=1e-6, batch_invariant=("cpu",))
def batch_invariant_addmm(y: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Torch's, lengthened as in `linear`."""
    rows, columns = _padding(x, weight.shape[1])
    if (not rows and not columns) or len(y) != len(x):
        return torch.addmm(y, x, weight, beta=beta, alpha=alpha)
    y, x = F.pad(y, (0, 0, 0, rows)), F.pad(x, (0, columns, 0, rows))
    weight = F.pad(weight, (0, 0, 0, columns)) if columns else weight
    return torch.addmm(y, x, weight, beta=beta, alpha=alpha)[: len(y) - rows]


def _grouped_reference(x: Tensor, weight: Tensor, *, offs: Tensor) -> Tensor:
    groups = x.tensor_split(offs[:-1].long().cpu())
    return torch.cat([linear.reference(rows, each.t()) for rows, each in zip(groups, weight, strict=True)])


@primitive(getattr(F, "grouped_mm", _grouped_reference))  # torch 2.10 is the first to have it
def grouped_mm(x: Tensor, weight: Tensor, *, offs: Tensor) -> Tensor:
    """x_i W_e for the rows i of each group e, which ends before row `offs[e]`; x [M, I], W [N, I, O], int32 [N]."""
    return _grouped_reference(x, weight, offs=offs)


@grouped_mm.kernel("batch-invariant", rank=0, tolerance=1e-6, batch_invariant=("cpu",))
def batch_invariant_grouped_mm(x: Tensor, weight: Tensor, *, offs: Tensor) -> Tensor:
    """Torch's product of groups where it does not depend on how many rows a group has, else group by group."""
    if x.device.type != "cpu" or is_strict(x.dtype):
        return grouped_mm.torch_function(x, weight, offs=offs)
    groups = x.tensor_split(offs[:-1].long().cpu())
    return torch.cat([batch_invariant_linear(rows, each.t()) for rows, each in zip(groups, weight, strict=True)])


def _block_products(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Torch's product of batches, of which a block is one."""
    rows = x.flatten(0, -3).transpose(0, 1)  # [H, N, I]
    y = torch.bmm(rows, weight.transpose(1, 2)).transpose(0, 1).unflatten(0, x.shape[:-2])
    return y if bias is None else y + bias


@primitive(_block_products)
def block_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_h = W_h x_h + b_h, a block-diagonal map; x [..., H, I], W [H, O, I], b [H, O], y [..., H, O]."""
    y = (x[..., None, :] * weight).sum(-1)
    return y if bias is None else y + bias


@block_linear.kernel("batch-invariant", rank=0, tolerance=1e-6, batch_invariant=("cpu",))
def batch_invariant_block_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear`, block by block."""
    parts = [batch_invariant_linear(each.contiguous(), w) for each, w in zip(x.unbind(-2), weight, strict=True)]
    y = torch.stack(parts, -2)
    return y if bias is None else y + bias


@cache
def is_strict(dtype: torch.dtype) -> bool:
    """Whether torch's own products are the same for one row and for many in this process, as in MKL's strict mode."""
    return _rows_alike(F.linear, dtype)


@cache
def products_are_batch_invariant(dtype: torch.dtype = torch.float32) -> bool:
    """Whether those of `batch_invariant_linear` are; not on a processor where products of full fours differ too."""
    return _rows_alike(batch_invariant_linear.fn, dtype)


def _rows_alike(product: Callable[..., Tensor], dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    for inputs, outputs in ((512, 192), (64, 16), (64, 12)):  # several threads share a narrow product in another way
        x, w = (torch.randn(size, inputs, generator=generator, dtype=dtype) for size in (64, outputs))
        whole = product(x, w)
        if not all(torch.equal(product(x[:rows], w), whole[:rows]) for rows in (1, 2, 3, 5, 8, 13, 16, 33)):
            return False
    return True


def _padding(x: Tensor, outputs: int) -> tuple[int, int]:
    """Rows and columns that lengthen x [..., I] to full fours, where torch's product depends on how many rows it has
    and on where they begin; none elsewhere. Several threads share the columns of a product that has fewer rows than
    columns, and few columns each round in another way: such a product gets as many rows as it has columns."""
    if x.device.type != "cpu" or is_strict(x.dtype):
        return 0, 0
    count = x.shape[:-1].numel()
    rows = -count % FOUR
    if count < outputs < NARROW * (threads := torch.get_num_threads()) and threads > 1:
        rows = outputs - count + -outputs % FOUR
    return rows, -x.shape[-1] % FOUR
