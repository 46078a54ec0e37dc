"""Causal softmax attention over a bounded window of keys and values: of every token, or of selected tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.hardware.execution import active_context
from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, Slower, op
from synthe_core.ops.native_attention import native_attention, unavailable
from synthe_core.ops.scaled_dot_product_attention import capped_attention, scaled_dot_product_attention

MOST_PACKS = 8  # of a block's queries
CAPPED = 256  # queries in a block where scores are bounded
BOUNDED = "scores are bounded, which torch's fused attention does not do"
COPY = 16  # queries whose scores cost what copying their keys does


@op
def window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None, cap: float | None = None
) -> Tensor:
    """Softmax attention of each token to itself and the `window - 1` tokens before it.

        o_t = sum_s softmax_s(f(q_t . k_s / sqrt(K))) v_s        over  s in (P + t - window, P + t]

    f bounds scores, f(a) = cap tanh(a / cap); without a `cap` it is the identity.

    q [B, T, H, K]; k, v [B, P + T, G, K] where the first P entries are the past and G divides H (query h reads
    key head h // (H / G)); valid bool [B, P + T] or None: keys that are False are never read. A query with no valid
    key gives zeros. Returns o [B, T, H, K]. Source: Vaswani et al. 2017; grouped heads: Ainslie et al. 2023; the cap:
    Gemma Team 2024, "Gemma 2".
    """
    past = k.shape[1] - q.shape[1]
    group = q.shape[2] // k.shape[2]
    outputs = []
    for t in range(q.shape[1]):
        first, last = max(0, past + t + 1 - window), past + t + 1
        keys = k[:, first:last].repeat_interleave(group, dim=2)
        values = v[:, first:last].repeat_interleave(group, dim=2)
        scores = torch.einsum("bhk,bshk->bhs", q[:, t], keys) * q.shape[-1] ** -0.5
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, first:last], -torch.inf)
        weights = torch.nan_to_num(scores.softmax(-1))
        outputs.append(torch.einsum("bhs,bshk->bhk", weights, values))
    return torch.stack(outputs, dim=1)


@window_attention.kernel("native", rank=50, tolerance=1e-5, batch_invariant=("cpu",))
def native(q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None, cap: float | None = None) -> Tensor:
    """In C: a query's sums follow its own keys only, so that neither a cut of the text nor a cached prefix changes a
    bit."""
    return native_attention(q, k, v, window, valid, cap)


@native.refuses
def _native_refusal(hardware: Hardware, call: Call) -> str | None:
    if call.dtype != torch.float32:
        return f"numbers are {str(call.dtype).removeprefix('torch.')}, and the kernel's are float32"
    if call.grad:
        return "it has no gradient"
    if not active_context().batch_invariant and (call.time > 1 or "selected" in call.arguments):
        return Slower("no cut of the text has to be exact: torch's attention")
    return unavailable(hardware, call.device)


def window_mask(queries: range, keys: range, window: int, device: torch.device) -> Tensor:
    """bool [queries, keys]: whether the token of a query reads that of a key, itself or one of `window - 1` before."""
    row = torch.arange(queries.start, queries.stop, device=device)[:, None]
    column = torch.arange(keys.start, keys.stop, device=device)
    return (column <= row) & (column > row - window)


@window_attention.kernel("capped-blocks", rank=40, tolerance=1e-5, batch_invariant=("cpu",))
def capped_blocks(
    q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None, cap: float | None = None
) -> Tensor:
    """Queries in blocks, each against the keys that one of them reads: scores of a block only are in memory."""
    assert cap is not None
    past = k.shape[1] - q.shape[1]
    outputs = []
    for start in range(0, q.shape[1], CAPPED):
        queries = q[:, start : start + CAPPED]
        first, last = max(0, past + start + 1 - window), past + start + queries.shape[1]
        mask = window_mask(range(past + start, last), range(first, last), window, q.device)[None, None]
        if valid is not None:
            mask = mask & valid[:, None, None, first:last]
        outputs.append(_capped(queries, k[:, first:last], v[:, first:last], mask, cap))
    return torch.cat(outputs, 1)


@capped_blocks.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return "scores are not bounded" if call.arguments.get("cap") is None else None


@window_attention.kernel("causal-sdpa", rank=30, tolerance=1e-5, batch_invariant=("cpu",))
def causal_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None, cap: float | None = None) -> Tensor:
    """Torch's fused attention with its own causal flag: no past, every token within the window, no padding."""
    return _sdpa(q, k, v, mask=None, causal=q.shape[1] > 1)


@causal_sdpa.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    keys, single = call.arguments["k"].shape[1], call.time == 1
    if call.arguments.get("cap") is not None:
        return BOUNDED
    if call.arguments["valid"] is not None:
        return "some keys are padding, so a mask is needed"
    if keys > call.arguments["window"]:
        return "the window is shorter than the keys"
    return (
        None if keys == call.time or single else "the queries continue a past, so causality is not the plain triangle"
    )


@window_attention.kernel("banded-sdpa", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
def banded_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None, cap: float | None = None) -> Tensor:
    """Queries in blocks of `window`, each against its own block of keys and the one before: cost T 2 window, not T²."""
    batch, time, heads, size = q.shape
    past = k.shape[1] - time
    front, back = window - past, -time % window  # so that one whole block of keys precedes the first query
    real = torch.ones(batch, past + time, dtype=torch.bool, device=q.device) if valid is None else valid
    blocks = (time + back) // window
    q = F.pad(q, (0, 0, 0, 0, 0, back)).view(batch * blocks, window, heads, size)
    keys, values, real = (_pairs(x, front, back, window) for x in (k, v, real))
    row, column = torch.arange(window, device=q.device)[:, None], torch.arange(2 * window, device=q.device)
    band = (column <= row + window) & (column > row)
    out = _sdpa(q, keys, values, mask=(band & real[:, None])[:, None], causal=False)
    return out.reshape(batch, blocks * window, heads, size)[:, :time]


@banded_sdpa.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    window, keys = call.arguments["window"], call.arguments["k"].shape[1]
    if call.arguments.get("cap") is not None:
        return BOUNDED
    if keys - call.time > window:
        return "the past is longer than the window"
    if call.time < 2 * window:
        return Slower("fewer than two windows of queries: one masked product is cheaper")
    return None


@window_attention.kernel("masked-sdpa", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def masked_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None, cap: float | None = None) -> Tensor:
    """Torch's fused attention with an explicit mask: any past, any padding."""
    past = k.shape[1] - q.shape[1]
    mask = window_mask(range(past, k.shape[1]), range(k.shape[1]), window, q.device)[None, None]
    if valid is not None:
        mask = mask & valid[:, None, None]
    return _sdpa(q, k, v, mask=mask, causal=False)


@masked_sdpa.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return None if call.arguments.get("cap") is None else BOUNDED


def _pairs(x: Tensor, front: int, back: int, block: int) -> Tensor:
    """x [B, S, ...], lengthened by zeros at both ends, as every two blocks in a row: [B n, 2 block, ...]."""
    inner = x.shape[2:]
    x = F.pad(x.flatten(2) if inner else x.unsqueeze(-1), (0, 0, front, back)).unflatten(1, (-1, block))
    return torch.stack([x[:, :-1], x[:, 1:]], dim=2).reshape(-1, 2 * block, *inner)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    heads, grouped = q.shape[2], q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if grouped and mask is not None and q.is_cuda:  # torch's fused kernels take groups or a mask, not both
        q, mask = _heads_as_queries(q, mask, k.shape[1])
        grouped = False
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    if mask is not None:  # a query without a key gives zeros, not NaN
        out = out.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return out.unflatten(2, (heads // out.shape[1], -1)).flatten(1, 2).transpose(1, 2)


def _heads_as_queries(q: Tensor, mask: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """q [B, H, T, K] and mask [B or 1, 1, T, S] as queries of G heads: [B, G, H / G T, K] and [B or 1, 1, H / G T, S].
    Heads that read the same keys are further queries of them."""
    share = q.shape[1] // groups
    return q.unflatten(1, (groups, share)).flatten(2, 3), mask.repeat(1, 1, share, 1)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, cap: float) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return capped_attention(q, k, v, mask, cap).transpose(1, 2)


@op
def probed_attention(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, window: int, valid: Tensor | None, cap: float | None = None
) -> Tensor:
    """`window_attention` of some tokens only: those where `selected`, bool [B, T], N in all.

    q [N, H, K], their queries, row by row; k, v [B, P + T, G, K] and valid as there: every key may be read.
    Returns o [N, H, K].
    """
    queries = q.new_zeros(*selected.shape, *q.shape[1:]).masked_scatter(selected[..., None, None], q)
    return window_attention.reference(queries, k, v, window, valid, cap)[selected]


@probed_attention.kernel("native", rank=50, tolerance=1e-5, batch_invariant=("cpu",))
def probed_native(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, window: int, valid: Tensor | None, cap: float | None = None
) -> Tensor:
    """As `native`, of the queries as they are."""
    return native_attention(q, k, v, window, valid, cap, selected)


probed_native.refuses(_native_refusal)


@probed_attention.kernel("packed-sdpa", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def packed_sdpa(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, window: int, valid: Tensor | None, cap: float | None = None
) -> Tensor:
    """Tokens in blocks of `window`; the queries of each, packed, against its keys and those of the block before it.

    A pack holds m queries; a block with more queries has several packs, and one without queries has none.
    """
    if not len(q):
        return q
    time = selected.shape[1]
    real = selected.new_ones(k.shape[:2]) if valid is None else valid
    if (older := k.shape[1] - time - window) > 0:  # keys outside the window of every token of this pass
        k, v, real = (x[:, older:] for x in (k, v, real))
    block, back = (time, 0) if time <= window else (window, -time % window)
    if time > window:
        k, v, real = (_pairs(x, window + time - x.shape[1], back, window) for x in (k, v, real))
    blocks = F.pad(selected, (0, back)).reshape(-1, block)
    rank = blocks.cumsum(1)
    counts = rank[:, -1].tolist()  # waits for the device: sizes depend on it
    size = _pack_size(counts, time)
    block_of_pack = [index for index, count in enumerate(counts) for _ in range(-(-count // size))]
    if block_of_pack != list(range(len(counts))):
        index = torch.tensor(block_of_pack, device=k.device)
        k, v, real = (x.index_select(0, index) for x in (k, v, real))
    packs = (rank[:, -1] + size - 1) // size
    where, column = blocks.nonzero(as_tuple=True)
    slot = (packs.cumsum(0) - packs)[where] * size + rank[blocks] - 1
    packed = q.new_zeros(len(block_of_pack) * size, *q.shape[1:]).index_copy(0, slot, q).unflatten(0, (-1, size))
    own = column.new_full((len(block_of_pack) * size,), -1)  # -1: empty slot
    own = own.index_copy(0, slot, column + k.shape[1] - block)
    own = own.view(-1, size, 1)
    place = torch.arange(k.shape[1], device=k.device)
    mask = (place <= own) & (place > own - window) & real[:, None]
    mask = mask[:, None]
    out = _sdpa(packed, k, v, mask, causal=False) if cap is None else _capped(packed, k, v, mask, cap)
    return out.flatten(0, 1).index_select(0, slot)


def _pack_size(counts: list[int], time: int) -> int:
    """The size of packs that costs least where each block has `counts` queries: half-empty ones against copied keys.

    A multiple of four: products round a last row that is not in a full four differently, and the number of queries must
    not matter to other tokens. A pass of one token has packs of one, and so has one where no block has two queries,
    unless it is to be batch-invariant: the queries of other rows must not matter then.
    """
    most = max(counts)
    if most == 1 and (time == 1 or not active_context().batch_invariant):
        return 1
    sizes = [-(-most // (4 * parts)) * 4 for parts in range(1, min(most, MOST_PACKS) + 1)]
    return min(sizes, key=lambda size: sum(-(-count // size) for count in counts) * (size + COPY))
