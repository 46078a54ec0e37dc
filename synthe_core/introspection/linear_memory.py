"""The effective attention matrix of a linear memory: which tokens each reading comes from, exactly, with erasures.

A memory that is linear in its writes reads o_t = Σ_s A_ts v_s + r_t S_0 with coefficients A that depend on keys, gates
and erasures only. Every row of A is computed backwards in time from its query; chunks of tokens make that a few matrix
products. It is computed in float64, so that rounding does not hide an error of the algebra.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from synthe_core.ops.mlstm import EMPTY_SCALE, output_bound

CHUNK = 64


@dataclass(frozen=True, eq=False)
class LinearMemory:
    """S_t = Diag(α_t) S_{t-1} + b_t (a_tᵀ S_{t-1}) + w_t v_tᵀ, o_t = S_tᵀ q_t of one row, all float64, heads first.

    q, write w   [H, T, K]
    value v      [H, T, V]
    log_decay    [H, T, K] or [H, T, 1]: log α, at most 0
    recall a     [H, T, K]: the query of the memory before its decay, or None without erasures
    erase b      [H, T, K]: the key at which the recalled value is added (negative, to erase), or None
    state        [H, K, V]: S_0
    scale        [H, T]: the divisor of readings (mLSTM's normaliser), or None
    """

    q: Tensor
    write: Tensor
    value: Tensor
    log_decay: Tensor
    recall: Tensor | None
    erase: Tensor | None
    state: Tensor
    scale: Tensor | None = None

    @property
    def time(self) -> int:
        return self.q.shape[1]

    def rows(self, start: int, stop: int, q: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A_ts [H, n, stop] of the n readings `start` <= t < `stop` on every write, and r_t [H, n, K].

        With `q` [H, n, K], of other queries at those tokens, before any normaliser.
        """
        queries = (self.q[:, start:stop] if q is None else q).clone()
        coefficients = queries.new_zeros(*queries.shape[:2], stop)
        for number in range((stop - 1) // CHUNK, -1, -1):
            first, last = number * CHUNK, min((number + 1) * CHUNK, stop)
            later = slice(max(last - start, 0), None)  # readings after the chunk
            if last > start:  # and those in it
                own = slice(max(first - start, 0), last - start)
                token = torch.arange(max(first, start), last, device=queries.device)
                coefficients[:, own, first:last], queries[:, own] = _through(self, queries[:, own], token, first, last)
            if last < stop:
                onto, back = self._chunks[number]
                coefficients[:, later, first:last] = queries[:, later] @ onto
                queries[:, later] = queries[:, later] @ back
        if self.scale is None or q is not None:
            return coefficients, queries
        scale = self.scale[:, start:stop, None]
        return coefficients / scale, queries / scale

    @cached_property
    def _chunks(self) -> list[tuple[Tensor, Tensor]]:
        """For every complete chunk, the maps from a later query to coefficients of its writes [H, K, C], and to the
        query of the memory before it [H, K, K]."""
        every = torch.eye(self.q.shape[2], dtype=self.q.dtype, device=self.q.device).expand(self.q.shape[0], -1, -1)
        maps = []
        for first in range(0, self.time // CHUNK * CHUNK, CHUNK):
            after = torch.full((every.shape[1],), first + CHUNK - 1, device=every.device)
            maps.append(_through(self, every, after, first, first + CHUNK))
        return maps


RULES = frozenset(
    {
        "delta_rule",
        "delta_rule_error",
        "linear_attention",
        "kda",
        "generalized_delta_rule",
        "mlstm",
        "gated_linear_attention",
    }
)
"""The operators with a linear memory."""
STATES = ("state", "memory", "scale")


def linear_memory(op: str, arguments: Mapping[str, Any]) -> LinearMemory:
    """The memory of a call of an operator of RULES; the first row of a batch."""
    values = {name: _first(name, value) for name, value in arguments.items()}
    q, k, v = values["q"], values["k"], values["v"]
    if len(q) != len(v):  # several value heads read each of their heads
        q, k = (x.repeat_interleave(len(v) // len(x), dim=0) for x in (q, k))
    if op == "mlstm":
        return _mlstm(q, k, v, values)
    state = values.get("state")
    state = q.new_zeros(q.shape[0], q.shape[2], v.shape[2]) if state is None else state
    decay = values.get("log_decay")
    decay = q.new_zeros(*q.shape[:2], 1) if decay is None else decay
    decay = decay[..., None] if decay.dim() == 2 else decay
    if op == "generalized_delta_rule":
        return LinearMemory(q, k, v, decay, values["a"], values["b"], state)
    if op == "gated_linear_attention":
        return LinearMemory(q, k, v, decay, None, None, state)
    write = values["beta"][..., None] * k
    if op == "linear_attention":
        return LinearMemory(q, write, v, decay, None, None, state)
    return LinearMemory(q, write, v, decay, decay.exp() * k, -write, state)


def _first(name: str, value: Any) -> Any:
    """Row 0 of [B, T, H, ...] as [H, T, ...] in float64; of a state [B, H, ...], as [H, ...]; None stays."""
    if not isinstance(value, Tensor):
        return value
    row = value[0].detach().double()
    return row if name in STATES else row.transpose(0, 1)


def _through(memory: LinearMemory, queries: Tensor, token: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """The coefficients of the writes first <= s < last, and the queries of the memory before them.

    queries: [H, n, K], of the memory at the tokens `token` [n], first <= token < last.
    """
    span = slice(first, last)
    place = torch.arange(last - first, device=token.device)
    faded = memory.log_decay[:, span].cumsum(1)  # G_s: from the chunk's beginning to after s
    reach = faded[:, token - first]
    seen = (token - first)[:, None] >= place
    written = _products(queries, memory.write[:, span], reach, faded, seen)
    before = queries * reach.exp()
    if memory.recall is not None and memory.erase is not None:
        erased = _products(queries, memory.erase[:, span], reach, faded, seen)
        a = memory.recall[:, span]
        earlier = faded - memory.log_decay[:, span]  # G_{s-1}: a_s reads before the decay of s
        strictly = place[:, None] > place
        through = _products(
            a, memory.erase[:, span], earlier, faded, strictly
        )  # what an erasure reads of earlier erasures
        of_writes = _products(a, memory.write[:, span], earlier, faded, strictly)
        system = torch.eye(last - first, dtype=a.dtype, device=a.device) - through
        # The coefficient of each reading on what a_s recalled:
        recalled = torch.linalg.solve_triangular(system, erased, upper=False, left=False, unitriangular=True)
        written = written + recalled @ of_writes
        before = before + recalled @ (a * earlier.exp())
    return written, before


def _products(left: Tensor, right: Tensor, reach: Tensor, faded: Tensor, seen: Tensor) -> Tensor:
    """Σ_k left_tk exp(reach_tk - faded_sk) right_sk where `seen` [n, C], else 0: [H, n, C]."""
    if faded.shape[-1] == 1:
        fading = (reach - faded.transpose(1, 2)).masked_fill(~seen, -torch.inf).exp()
        return (left @ right.transpose(1, 2)) * fading
    out = left.new_zeros(left.shape[0], left.shape[1], right.shape[1])
    for s in range(right.shape[1]):
        fading = (reach - faded[:, s : s + 1]).masked_fill(~seen[:, s, None], -torch.inf).exp()
        out[:, :, s] = (left * fading * right[:, s : s + 1]).sum(-1)
    return out


def _mlstm(q: Tensor, k: Tensor, v: Tensor, values: Mapping[str, Any]) -> LinearMemory:
    """Stable for gates of any size: values are stored relative to exp(m_t), m_t the largest weight of a write at t."""
    log_input, log_forget, first = values["log_input"], values["log_forget"], values["scale"]
    m, largest = torch.empty_like(log_input), first
    for t in range(log_input.shape[1]):
        largest = torch.maximum(log_forget[:, t] + largest, log_input[:, t])
        m[:, t] = largest
    before = torch.cat([first[:, None], m[:, :-1]], 1)
    write = (log_input - m).exp()[..., None] * k
    memory, total = values["memory"][..., :-1], values["memory"][..., -1:]
    begun = before > 0.5 * EMPTY_SCALE  # before the first write the memory is empty
    decay = (log_forget + before - m).where(begun, 0.0)[..., None]
    bare = LinearMemory(q, write, v, decay, None, None, memory)
    norms = torch.cat([_norms(bare, total, start) for start in range(0, bare.time, 256)], 1)
    return replace(bare, scale=torch.maximum(norms.abs(), output_bound(m)[..., 0]))


def _norms(memory: LinearMemory, total: Tensor, start: int) -> Tensor:
    """n_t · q_t [H, n] of up to 256 readings from `start`."""
    coefficients, queries = memory.rows(start, min(start + 256, memory.time))
    return coefficients.sum(-1) + (queries @ total)[..., 0]


def reconstruct(memory: LinearMemory, start: int, stop: int) -> Tensor:
    """o_t = Σ_s A_ts v_s + r_t S_0 [H, stop - start, V]: what the operator must have returned."""
    coefficients, queries = memory.rows(start, stop)
    return coefficients @ memory.value[:, :stop] + queries @ memory.state
