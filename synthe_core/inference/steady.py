"""Arithmetic of which each number is the same whatever stands beside it: the same request, the same answer, however
many others are served.

Batching changes a row's numbers by rounding in two ways, and either may turn a near tie. MKL has products of its own
for few rows: its strict mode has none, and costs a single row up to twice the time of its products. It has that mode
on Intel's processors only; on others rows and columns go into a product in fours, which it all treats alike. And
torch's sigmoid, softplus, SiLU and GELU take other instructions for the last few numbers of a tensor: here they are
made of exp and log1p, which do not.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MODE = "MKL_CBWR"
STRICT = "AUTO,STRICT"
FOUR = 4  # what rows and columns of a product come in where it is lengthened
BLOCK = 128  # keys


def ask() -> None:
    """Asks MKL for its strict mode; it listens until its first product in this process."""
    os.environ.setdefault(MODE, STRICT)


@cache
def holds() -> bool:
    """Whether `linear` is the same for one row and for many in this process."""
    return _alike(linear, torch.float32)


@cache
def strict(dtype: torch.dtype) -> bool:
    """Whether torch's own products are."""
    return _alike(_linear, dtype)


def _alike(product: Callable[..., Tensor], dtype: torch.dtype) -> bool:
    drawn = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, 512, generator=drawn, dtype=dtype) for size in (64, 192))
    whole = product(x, w)
    return all(torch.equal(product(x[:rows], w), whole[:rows]) for rows in (1, 2, 3, 5, 8, 13, 16, 33))


def _lacking(x: Tensor) -> tuple[int, int]:
    """How many rows and columns x [..., I] lacks to full fours, where torch's product depends on how many rows it has
    and on where they begin; none elsewhere."""
    if x.device.type != "cpu" or strict(x.dtype):
        return 0, 0
    return -x.shape[:-1].numel() % FOUR, -x.shape[-1] % FOUR


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, x [..., I], lengthened by zeros to full fours where torch's product depends on its rows."""
    rows, columns = _lacking(x)
    if not rows and not columns:
        return _linear(x, weight, bias)
    whole = F.pad(x.reshape(-1, x.shape[-1]), (0, columns, 0, rows))
    y = _linear(whole, F.pad(weight, (0, columns)) if columns else weight, bias)
    return y[: len(y) - rows].view(*x.shape[:-1], len(weight))


def grouped_mm(x: Tensor, weight: Tensor, *, offs: Tensor, **options: Any) -> Tensor:
    """x_i W_e for the rows i of each group e, which end at `offs`; x [M, I], W [N, I, O]: group by group, by `linear`
    where torch's own products depend on how many rows a group has."""
    assert _grouped is not None
    if x.dim() == 3 or weight.dim() == 2 or x.device.type != "cpu" or strict(x.dtype):
        return _grouped(x, weight, offs=offs, **options)
    groups = x.tensor_split(offs[:-1].long().cpu())
    return torch.cat([linear(rows, each.t()) for rows, each in zip(groups, weight, strict=True)])


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.reciprocal(torch.neg(x).exp_().add_(1))


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(βx)) / β; x itself where βx is beyond the threshold."""
    scaled = x * beta
    return torch.where(scaled > threshold, x, scaled.exp().log1p() / beta)


def silu(x: Tensor, inplace: bool = False) -> Tensor:
    """x σ(x)."""
    return x * sigmoid(x)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x Φ(x), or its approximation by tanh (Hendrycks and Gimpel 2016)."""
    if approximate == "none":
        return x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention of a single query, q [B, H, 1, K], to keys of which the first may be masked out (bool [B, 1, 1, S]):
    however many of them, nothing changes. The sums go over blocks counted from the last key, and then over the blocks
    in that order. Whatever else is asked for is torch's."""
    plain = attn_mask is not None and attn_mask.dtype == torch.bool and attn_mask.shape[1:3] == (1, 1)
    if attn_mask is None or not plain or q.shape[2] > 1 or dropout_p:
        return _attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries = q[:, :, 0].unflatten(1, (k.shape[1], -1)) * scale  # [B, G, H / G, K]
    heads = queries.shape[2]
    queries = F.pad(queries, (0, 0, 0, -heads % FOUR))  # products of other sizes depend on how many keys there are
    if front := -k.shape[2] % BLOCK:
        k, v = (F.pad(x, (0, 0, front, 0)) for x in (k, v))
        attn_mask = F.pad(attn_mask, (front, 0))
    scores = (queries @ k.transpose(-1, -2)).masked_fill(~attn_mask, -torch.inf)  # [B, G, H / G, S]
    most = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    weights, ones = (scores - most).exp(), scores.new_ones(BLOCK, 1)
    total, whole = scores.new_zeros(()), scores.new_zeros(())
    for first in range(k.shape[2] - BLOCK, -1, -BLOCK):
        part = weights[..., first : first + BLOCK]
        total = total + part @ v[:, :, first : first + BLOCK]
        whole = whole + part @ ones
    answer = total / whole.clamp_min(torch.finfo(scores.dtype).tiny)
    return answer[:, :, :heads].flatten(1, 2)[:, :, None]


def addmm(y: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """β y + α x W of matrices, lengthened as in `linear`."""
    rows, columns = _lacking(x)
    if (not rows and not columns) or len(y) != len(x):
        return _addmm(y, x, weight, beta=beta, alpha=alpha)
    y, x = F.pad(y, (0, 0, 0, rows)), F.pad(x, (0, columns, 0, rows))
    weight = F.pad(weight, (0, 0, 0, columns)) if columns else weight
    return _addmm(y, x, weight, beta=beta, alpha=alpha)[: len(y) - rows]


_linear = F.linear
_addmm = torch.addmm
_grouped = getattr(F, "grouped_mm", None)  # torch 2.10 is the first to have it
_attention = F.scaled_dot_product_attention

INSTEAD: Sequence[tuple[Any, str, Callable[..., Any]]] = (
    (torch, "sigmoid", sigmoid),
    (Tensor, "sigmoid", sigmoid),
    (F, "softplus", softplus),
    (F, "silu", silu),
    (F, "gelu", gelu),
    (F, "linear", linear),
    (torch, "addmm", addmm),
    *([] if _grouped is None else [(F, "grouped_mm", grouped_mm)]),
    (F, "scaled_dot_product_attention", attend),
)
_here = threading.local()
_lock = threading.Lock()
_users = 0
_torchs: list[Callable[..., Any]] = []


@contextmanager
def steady() -> Iterator[None]:
    """Within the block, on this thread, the functions above take the place of torch's. (Torch's own way to step in, a
    function mode, looks at every call and attribute: a fifth of a small model's step.)"""
    depth = getattr(_here, "depth", 0)
    _here.depth = depth + 1
    if depth == 0:
        _install(1)
    try:
        yield
    finally:
        _here.depth = depth
        if depth == 0:
            _install(-1)


def _install(change: int) -> None:
    """Counts the threads that are within the block; torch's functions are back in place as the last one leaves."""
    global _users
    with _lock:
        before, _users = _users, _users + change
        if before == 0:
            _torchs[:] = [getattr(owner, name) for owner, name, _ in INSTEAD]
            for (owner, name, ours), theirs in zip(INSTEAD, _torchs, strict=True):
                setattr(owner, name, _either(ours, theirs))
        elif _users == 0:
            for (owner, name, _), theirs in zip(INSTEAD, _torchs, strict=True):
                setattr(owner, name, theirs)


def _either(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return (ours if getattr(_here, "depth", 0) else theirs)(*args, **kwargs)

    return call
