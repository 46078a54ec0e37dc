"""Whence a linear memory's reading comes: its effective attention matrix, exact, with what was erased in between.

A memory that is linear in what is written reads o_t = Σ_s A_ts v_s + r_t S_0 for coefficients A that depend on keys,
gates and erasures only. Every row of A is followed backwards through time from its query; chunks of tokens make that a
few matrix products. In float64: rounding cannot hide an error of the algebra.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from synthe_core.ops.mlstm import UNSTARTED, least

CHUNK = 64


@dataclass(frozen=True, eq=False)
class LinearMemory:
    """S_t = Diag(α_t) S_{t-1} + b_t (a_tᵀ S_{t-1}) + w_t v_tᵀ, o_t = S_tᵀ q_t of one row, all float64, heads first.

    q, write w   [H, T, K]
    value v      [H, T, V]
    log_decay    [H, T, K] or [H, T, 1]: log α, at most 0
    recall a     [H, T, K]: at what the memory is asked before it fades, or None where nothing is erased
    erase b      [H, T, K]: where what was recalled is added (negative, to erase), or None
    state        [H, K, V]: S_0
    scale        [H, T]: what readings are divided by (mLSTM's normaliser), or None
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

        With `q` [H, n, K], of what other queries at those tokens would have read, before any normaliser.
        """
        asking = (self.q[:, start:stop] if q is None else q).clone()
        coefficients = asking.new_zeros(*asking.shape[:2], stop)
        for number in range((stop - 1) // CHUNK, -1, -1):
            first, last = number * CHUNK, min((number + 1) * CHUNK, stop)
            later = slice(max(last - start, 0), None)  # readings after the chunk
            if last > start:  # and those in it
                own = slice(max(first - start, 0), last - start)
                token = torch.arange(max(first, start), last, device=asking.device)
                coefficients[:, own, first:last], asking[:, own] = _through(self, asking[:, own], token, first, last)
            if last < stop:
                onto, back = self._chunks[number]
                coefficients[:, later, first:last] = asking[:, later] @ onto
                asking[:, later] = asking[:, later] @ back
        if self.scale is None or q is not None:
            return coefficients, asking
        scale = self.scale[:, start:stop, None]
        return coefficients / scale, asking / scale

    @cached_property
    def _chunks(self) -> list[tuple[Tensor, Tensor]]:
        """Of every whole chunk, how a reading after it asks its writes [H, K, C] and the memory before it [H, K, K]."""
        every = torch.eye(self.q.shape[2], dtype=self.q.dtype, device=self.q.device).expand(self.q.shape[0], -1, -1)
        made = []
        for first in range(0, self.time // CHUNK * CHUNK, CHUNK):
            after = torch.full((every.shape[1],), first + CHUNK - 1, device=every.device)
            made.append(_through(self, every, after, first, first + CHUNK))
        return made


RULES = frozenset({"delta_rule", "delta_rule_error", "linear_attention", "kda", "generalized_delta_rule", "mlstm"})
"""The operators that are linear memories."""
STATES = ("state", "memory", "scale")


def linear_memory(op: str, arguments: Mapping[str, Any]) -> LinearMemory:
    """The memory behind the call of an operator of RULES; its first row, where the batch has several."""
    given = {name: _first(name, value) for name, value in arguments.items()}
    q, k, v = given["q"], given["k"], given["v"]
    if op == "mlstm":
        return _mlstm(q, k, v, given)
    state = given.get("state")
    state = q.new_zeros(q.shape[0], q.shape[2], v.shape[2]) if state is None else state
    decay = given.get("log_decay")
    decay = q.new_zeros(*q.shape[:2], 1) if decay is None else decay
    decay = decay[..., None] if decay.dim() == 2 else decay
    if op == "generalized_delta_rule":
        return LinearMemory(q, k, v, decay, given["a"], given["b"], state)
    write = given["beta"][..., None] * k
    if op == "linear_attention":
        return LinearMemory(q, write, v, decay, None, None, state)
    return LinearMemory(q, write, v, decay, decay.exp() * k, -write, state)


def _first(name: str, value: Any) -> Any:
    """Row 0 of [B, T, H, ...] as [H, T, ...] in float64; of a state [B, H, ...], as [H, ...]; None stays."""
    if not isinstance(value, Tensor):
        return value
    row = value[0].detach().double()
    return row if name in STATES else row.transpose(0, 1)


def _through(memory: LinearMemory, asking: Tensor, token: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """The coefficients of the writes first <= s < last, and what is asked of the memory before them.

    `asking` [H, n, K] is what readings at the tokens `token` [n], first <= token < last, ask of the memory there.
    """
    span = slice(first, last)
    place = torch.arange(last - first, device=token.device)
    faded = memory.log_decay[:, span].cumsum(1)  # G_s: from the chunk's beginning to after s
    reach = faded[:, token - first]
    seen = (token - first)[:, None] >= place
    written = _products(asking, memory.write[:, span], reach, faded, seen)
    before = asking * reach.exp()
    if memory.recall is not None and memory.erase is not None:
        erased = _products(asking, memory.erase[:, span], reach, faded, seen)
        a = memory.recall[:, span]
        earlier = faded - memory.log_decay[:, span]  # G_{s-1}: a_s asks before s fades
        strictly = place[:, None] > place
        through = _products(a, memory.erase[:, span], earlier, faded, strictly)  # what an erasure recalls of erasures
        of_writes = _products(a, memory.write[:, span], earlier, faded, strictly)
        system = torch.eye(last - first, dtype=a.dtype, device=a.device) - through
        # How much each reading asks of what a_s recalled:
        asked = torch.linalg.solve_triangular(system, erased, upper=False, left=False, unitriangular=True)
        written = written + asked @ of_writes
        before = before + asked @ (a * earlier.exp())
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


def _mlstm(q: Tensor, k: Tensor, v: Tensor, given: Mapping[str, Any]) -> LinearMemory:
    """Gates of any size: all is kept over exp(m_t), m_t the largest weight that a write has at t."""
    log_input, log_forget, first = given["log_input"], given["log_forget"], given["scale"]
    m, largest = torch.empty_like(log_input), first
    for t in range(log_input.shape[1]):
        largest = torch.maximum(log_forget[:, t] + largest, log_input[:, t])
        m[:, t] = largest
    before = torch.cat([first[:, None], m[:, :-1]], 1)
    write = (log_input - m).exp()[..., None] * k
    memory, total = given["memory"][..., :-1], given["memory"][..., -1:]
    begun = before > 0.5 * UNSTARTED  # before the first write there is nothing that could fade
    decay = (log_forget + before - m).where(begun, 0.0)[..., None]
    bare = LinearMemory(q, write, v, decay, None, None, memory)
    norms = torch.cat([_norms(bare, total, start) for start in range(0, bare.time, 256)], 1)
    return replace(bare, scale=torch.maximum(norms.abs(), least(m)[..., 0]))


def _norms(memory: LinearMemory, total: Tensor, start: int) -> Tensor:
    """n_t · q_t [H, n] of up to 256 readings from `start`."""
    coefficients, asking = memory.rows(start, min(start + 256, memory.time))
    return coefficients.sum(-1) + (asking @ total)[..., 0]


def reconstructed(memory: LinearMemory, start: int, stop: int) -> Tensor:
    """o_t = Σ_s A_ts v_s + r_t S_0 [H, stop - start, V]: what the operator must have answered."""
    coefficients, asking = memory.rows(start, stop)
    return coefficients @ memory.value[:, :stop] + asking @ memory.state
