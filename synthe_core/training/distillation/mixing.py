"""Mixing matrices: what a learner reads of each earlier token, differentiable in the arguments of its operator.

A memory that is linear in its writes reads o_t = Σ_s M_ts v_s from an empty state. M is the student's counterpart of a
softmax's attention matrix; `introspection/linear_memory.py` traces the same coefficients of one row, in float64 and
with a first state. Here T is short, so that whole [T, T] matrices of a batch are the cheapest form.

Source: Bick et al. 2024, "Transformers to SSMs: distilling quadratic knowledge to subquadratic models" (MOHAWK).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.errors import unknown
from synthe_core.ops.mlstm import output_bound

BLOCK = 16  # tokens whose decays by channel are compared pairwise, where they span more than RANGE
RANGE = 60.0  # of the logarithm of a decay: e^30 on either side of the middle is far from overflow in float32


class _Terms(NamedTuple):
    """S_t = Diag(α_t) S_{t-1} + b_t (a_tᵀ S_{t-1}) + w_t v_tᵀ, o_t = S_tᵀ q_t, heads before time.

    q, write w, recall a, erase b: [B, H, T, K]; log_decay: log α [B, H, T, K or 1]. recall without erase: the memory is
    overwritten, b = -w.
    """

    q: Tensor
    write: Tensor
    log_decay: Tensor
    recall: Tensor | None = None
    erase: Tensor | None = None


def mixing_matrix(op: str, arguments: Mapping[str, Any]) -> Tensor:
    """M [B, H, T, T], lower triangular, of a call of the linear memory `op` from an empty state: it returns M v.

    Time is that of the operator: of a learner with several steps a token, the steps. Any first state is left out.
    InputError for an operator without such a matrix.
    """
    if op not in _TERMS:
        raise unknown("operator with a mixing matrix", op, _TERMS)
    with torch.autocast(arguments["q"].device.type, enabled=False):  # as the operator itself
        return _mlstm(arguments) if op == "mlstm" else _matrix(_TERMS[op](arguments))


def attention_matrix(arguments: Mapping[str, Any]) -> Tensor:
    """The softmax's matrix [B, H, T, T] of a call of `window_attention` without a past; a key head is that of its group
    of query heads. float32, or float64 as the arguments."""
    q, k, window, valid = (arguments[name] for name in ("q", "k", "window", "valid"))
    q, k = (x if x.dtype == torch.float64 else x.float() for x in (q, k))
    q, k = q.transpose(1, 2), k.repeat_interleave(q.shape[2] // k.shape[2], dim=2).transpose(1, 2)
    with torch.autocast(q.device.type, enabled=False):
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if (cap := arguments.get("cap")) is not None:
        scores = cap * torch.tanh(scores / cap)
    row = torch.arange(q.shape[2], device=q.device)
    seen = (row <= row[:, None]) & (row > row[:, None] - window)
    if valid is not None:
        seen = seen & valid[:, None, None]
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()


def _heads(arguments: Mapping[str, Any], *names: str) -> list[Tensor]:
    """Arguments [B, T, G, ...] as [B, H, T, ...], with as many heads as the values."""
    heads = arguments["v"].shape[2]
    tensors = [arguments[name] for name in names]
    return [x.repeat_interleave(heads // x.shape[2], dim=2).transpose(1, 2) for x in tensors]


def _log_decay(arguments: Mapping[str, Any], q: Tensor) -> Tensor:
    decay = arguments.get("log_decay")
    if decay is None:
        return torch.zeros_like(q[..., :1])
    (decay,) = _heads(arguments, "log_decay")
    return decay[..., None] if decay.dim() == 3 else decay


def _additive(arguments: Mapping[str, Any]) -> _Terms:
    q, k = _heads(arguments, "q", "k")
    write = k if "beta" not in arguments else k * _heads(arguments, "beta")[0][..., None]
    return _Terms(q, write, _log_decay(arguments, q))


def _overwriting(arguments: Mapping[str, Any]) -> _Terms:
    terms = _additive(arguments)
    (k,) = _heads(arguments, "k")
    return terms._replace(recall=terms.log_decay.exp() * k)


def _generalized(arguments: Mapping[str, Any]) -> _Terms:
    recall, erase = _heads(arguments, "a", "b")
    return _additive(arguments)._replace(recall=recall, erase=erase)


def _mlstm(arguments: Mapping[str, Any]) -> Tensor:
    """With gates of any size: weights relative to exp(m_t), m_t the largest of a write up to t."""
    q, k, log_input, log_forget = _heads(arguments, "q", "k", "log_input", "log_forget")
    faded = log_forget.cumsum(-1)
    relative = log_input - faded
    largest = (faded + relative.cummax(-1).values).detach()
    weight = (faded[..., None] + relative[..., None, :] - largest[..., None]).masked_fill(_future(q), -torch.inf)
    bare = (q @ k.transpose(-1, -2)) * weight.exp()
    return bare / torch.maximum(bare.sum(-1, keepdim=True).abs(), output_bound(largest))


_TERMS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "delta_rule": _overwriting,
    "delta_rule_error": _overwriting,
    "generalized_delta_rule": _generalized,
    "gated_linear_attention": _additive,
    "kda": _overwriting,
    "linear_attention": _additive,
    "mlstm": _mlstm,
}
LINEAR_OPS = frozenset(_TERMS)
"""The operators that have a mixing matrix."""


def _matrix(terms: _Terms) -> Tensor:
    faded = terms.log_decay.cumsum(2)  # G_t: from before the first token to after t
    written = _products(terms.q, terms.write, faded, faded, strict=False)
    if terms.recall is None:
        return written
    earlier = faded - terms.log_decay  # a_t reads before the decay of t
    one = torch.eye(written.shape[-1], dtype=written.dtype, device=written.device)
    if terms.erase is None:  # b = -w: M = W (I + R)^-1, R_ts what a_t reads of the write s
        recalled = _products(terms.recall, terms.write, earlier, faded, strict=True)
        return _solve(one + recalled, written)
    of_erasures = _products(terms.recall, terms.erase, earlier, faded, strict=True)
    of_writes = _products(terms.recall, terms.write, earlier, faded, strict=True)
    erased = _products(terms.q, terms.erase, faded, faded, strict=False)
    return written + _solve(one - of_erasures, erased) @ of_writes


def _solve(system: Tensor, right: Tensor) -> Tensor:
    """X of X · system = right, `system` lower triangular with ones on its diagonal."""
    return torch.linalg.solve_triangular(system, right, upper=False, left=False, unitriangular=True)


def _products(left: Tensor, right: Tensor, reach: Tensor, faded: Tensor, *, strict: bool) -> Tensor:
    """Σ_k left_tk exp(reach_tk - faded_sk) right_sk [B, H, T, T] where s < t, or s = t unless `strict`; 0 elsewhere."""
    if faded.shape[-1] == 1:
        fading = (reach - faded.transpose(-1, -2)).masked_fill(_future(left, strict), -torch.inf).exp()
        return (left @ right.transpose(-1, -2)) * fading
    return _by_channel(left, right, reach, faded, strict)


def _by_channel(left: Tensor, right: Tensor, reach: Tensor, faded: Tensor, strict: bool) -> Tensor:
    """`_products` with a decay for every channel. Where decays span no more than RANGE the decay is a factor of both
    sides; a longer text is split in two, and where the second half reads the first, at the boundary."""
    time = left.shape[2]
    middle = faded[:, :, time // 2, None]
    if float((reach[:, :, 0] - faded[:, :, -1]).detach().amax()) <= RANGE:
        products = (left * (reach - middle).exp()) @ (right * (middle - faded).exp()).transpose(-1, -2)
        return products.masked_fill(_future(left, strict), 0.0)
    if time <= BLOCK:
        pairs = reach[:, :, :, None] - faded[:, :, None]
        pairs = pairs.masked_fill(_future(left, strict)[..., None], -torch.inf).exp()
        return (left[:, :, :, None] * pairs * right[:, :, None]).sum(-1)
    half = time // 2
    early, late = slice(half), slice(half, time)
    first, second = (
        _by_channel(left[:, :, part], right[:, :, part], reach[:, :, part], faded[:, :, part], strict)
        for part in (early, late)
    )
    start = faded[:, :, half - 1 : half]  # no later than what reads and no earlier than what is read: no overflow
    later = left[:, :, late] * (reach[:, :, late] - start).exp()
    before = right[:, :, early] * (start - faded[:, :, early]).exp()
    across = later @ before.transpose(-1, -2)
    return torch.cat([F.pad(first, (0, time - half)), torch.cat([across, second], -1)], 2)


def _future(x: Tensor, strict: bool = False) -> Tensor:
    """bool [T, T] for x [B, H, T, K]: True where s > t; also at s = t if `strict`."""
    step = torch.arange(x.shape[2], device=x.device)
    return step >= step[:, None] if strict else step > step[:, None]
