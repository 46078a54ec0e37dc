"""Which earlier tokens a reading comes from: exact shares, checked by reconstructing the reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.introspection.linear_memory import CHUNK, RULES, LinearMemory, linear_memory
from synthe_core.introspection.observe import MemoryCall
from synthe_core.layers.fast_weights import FastWeights

ROWS = 512  # readings at a time
MAX_SOURCES = 8  # of a reading

Block = tuple[int, Tensor, Tensor, Tensor]
"""The first of n readings; the norm of each source's contribution to each head [H, n, S], that of the initial state
[H, n], and the readings [H, n, V]."""


class Reads(NamedTuple):
    """The sources of one learner's readings at the tokens `at` [N] (None: all tokens).

    sources [N, k]  the tokens that contribute most, in decreasing order; -1 if there are fewer.
    shares  [N, k]  their shares: the norm of a token's contribution over the sum of such norms, over all heads.
    distance [N]    how many tokens back on average, weighted by share.
    read    [H, N]  norm of each head's reading.
    error           largest difference between the sum of contributions and the operator's output, over the largest
                    output.
    """

    path: str
    learner: str
    op: str
    at: np.ndarray | None
    sources: np.ndarray
    shares: np.ndarray
    distance: np.ndarray
    read: np.ndarray
    error: float

    @property
    def max_share(self) -> np.ndarray:
        """The largest share [N]: 1 if a reading comes from one token only."""
        return self.shares[:, 0]


@torch.no_grad()
def follow(call: MemoryCall, time: int) -> Reads | None:
    """The sources of a memory's readings; None if the tokens of its entries are not known."""
    at = None if call.at is None else call.at[0]
    count = time if at is None else len(at)
    arguments = call.arguments
    first = (
        arguments["selected"]
        if "selected" in arguments
        else next(v for v in arguments.values() if isinstance(v, Tensor))
    )
    if not count or first.shape[1] % count:
        return None
    steps = first.shape[1] // count  # DeltaProduct takes several for each token
    blocks, answer = _blocks(call)
    late = 1 if isinstance(call.learner, FastWeights) else 0  # it reads before it writes
    sources = np.full((count, MAX_SOURCES), -1, dtype=np.int64)
    shares = np.zeros((count, MAX_SOURCES), dtype=np.float32)
    distance = np.zeros(count, dtype=np.float32)
    read = np.zeros((answer.shape[0], count), dtype=np.float32)
    error = 0.0
    place = torch.arange(count, device=first.device) if at is None else at
    for start, contributions, remembered, total in blocks:
        error = max(error, float((total - answer[:, start : start + total.shape[1]]).abs().max()))
        which = torch.arange(start, start + total.shape[1], device=first.device)
        last = (which + 1) % steps == 0  # a token reads after its last step
        token = which[last] // steps + late
        got = contributions.sum(0)[last]
        got = F.pad(got, (0, -got.shape[1] % steps)).unflatten(1, (-1, steps)).sum(-1)
        real = token < count
        token, got = token[real], got[real]
        whole = got.sum(1) + remembered.sum(0)[last][real]
        share = got / whole.clamp_min(1e-30)[:, None]
        best = share.topk(min(MAX_SOURCES, share.shape[1]), dim=1)
        row, width = token.cpu().numpy(), best.values.shape[1]
        shares[row, :width] = best.values.cpu().numpy()
        sources[row, :width] = np.where(best.values.cpu().numpy() > 0, place[best.indices].cpu().numpy(), -1)
        back = place[token][:, None] - place[: share.shape[1]]
        distance[row] = (share * back).sum(1).cpu().numpy()
        read[:, row] = total[:, last][:, real].norm(dim=-1).cpu().numpy()
    tokens = None if at is None else at.cpu().numpy()
    scale = max(float(answer.abs().max()), 1e-30)
    learner = call.learner.config.type
    return Reads(call.path, learner, call.op.name, tokens, sources, shares, distance, read, error / scale)


def _blocks(call: MemoryCall) -> tuple[Iterator[Block], Tensor]:
    """The readings in blocks, and the operator's actual output [H, T, V] in float64."""
    out = call.op(**call.arguments)
    out = (out[0] if isinstance(out, tuple) else out).double()
    name, arguments = call.op.name, call.arguments
    if name in RULES:
        return _linear(linear_memory(name, arguments)), out[0].transpose(0, 1)
    if name == "gated_average":
        gate, value = arguments["gate"][0].double(), arguments["value"][0].double()
        state = torch.zeros_like(value[0]) if arguments.get("state") is None else arguments["state"][0].double()
        return _average(gate, value, state), out
    return _softmax(call), _answers(call, out)


def _linear(memory: LinearMemory) -> Iterator[Block]:
    sizes = memory.value.norm(dim=-1)
    for start in range(0, memory.time, ROWS):
        stop = min(start + ROWS, memory.time)
        coefficients, queries_at_start = memory.rows(start, stop)
        from_state = queries_at_start @ memory.state
        total = coefficients @ memory.value[:, :stop] + from_state
        yield start, coefficients.abs() * sizes[:, None, :stop], from_state.norm(dim=-1), total


def _average(logits: Tensor, value: Tensor, state: Tensor) -> Iterator[Block]:
    """h_t = a_t h_{t-1} + (1 - a_t) v_t for each channel: one head, whose writes are weighted by what is left of
    them.
    """
    faded = F.logsigmoid(logits).cumsum(0)
    written = (-logits).sigmoid() * value
    for start in range(0, len(value), ROWS):
        stop = min(start + ROWS, len(value))
        queries = faded[start:stop]
        total = queries.exp() * state
        got = value.new_zeros(stop - start, stop)
        remembered = total.norm(dim=-1)
        for first in range(0, stop, CHUNK):
            chunk = slice(first, min(first + CHUNK, stop))
            end = faded[chunk][-1]
            later = (torch.arange(start, stop, device=value.device) >= chunk.stop - 1)[:, None]
            # Decay is split at the chunk's end, so that neither factor can overflow.
            left, right = (queries - end).clamp_max(0).exp() * later, (end - faded[chunk]).exp() * written[chunk]
            total = total + left * right.sum(0)
            got[:, chunk] = (left.square() @ right.square().T).sqrt()
            for s in range(chunk.start, chunk.stop - 1) if chunk.stop > start + 1 else ():
                own = slice(max(0, s - start), max(0, chunk.stop - 1 - start))  # readings within the chunk
                part = (queries[own] - faded[s]).exp() * written[s]
                total[own] += part
                got[own, s] = part.norm(dim=-1)
        yield start, got[None], remembered[None], total[None]


def _answers(call: MemoryCall, out: Tensor) -> Tensor:
    """The output of attention by heads, with zeros for tokens without a query."""
    if "selected" not in call.arguments:
        return out[0].transpose(0, 1)
    selected = call.arguments["selected"][0]
    expanded = out.new_zeros(len(selected), *out.shape[1:])
    expanded[selected] = out[: int(selected.sum())]
    return expanded.transpose(0, 1)


def _softmax(call: MemoryCall) -> Iterator[Block]:
    """softmax(q·k / √K) v over the window, grouped heads, scores bounded where there is a cap and lowered by what a
    forget gate forgets; the reading is zero if no key is visible."""
    arguments = call.arguments
    probed = call.op.name == "probed_attention"
    selected = arguments["selected"][0] if probed else None
    k, v = (arguments[name][0].double().transpose(0, 1) for name in ("k", "v"))
    q = arguments["q"].double()
    if selected is None:
        q = q[0]
    else:
        expanded = q.new_zeros(len(selected), *q.shape[1:])
        expanded[selected] = q[: int(selected.sum())]
        q = expanded
    q = q.transpose(0, 1)
    group = q.shape[0] // k.shape[0]
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))
    past, window = k.shape[1] - q.shape[1], arguments["window"]
    sizes = v.norm(dim=-1)
    valid = arguments["valid"]
    reach = arguments["reach"][0].double().T if "reach" in arguments else None
    for start in range(0, q.shape[1], ROWS):
        stop = min(start + ROWS, q.shape[1])
        row = torch.arange(start, stop, device=q.device)[:, None] + past
        column = torch.arange(stop + past, device=q.device)
        seen = (column <= row) & (column > row - window)
        if valid is not None:
            seen = seen & valid[0, : stop + past]
        if selected is not None:
            seen = seen & selected[start:stop, None]
        scores = q[:, start:stop] @ k[:, : stop + past].transpose(1, 2) / q.shape[-1] ** 0.5
        if (cap := arguments.get("cap")) is not None:
            scores = cap * torch.tanh(scores / cap)
        if reach is not None:
            scores = scores - reach[:, None, : stop + past]  # what a query forgets of all keys changes no weight
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
        total = weights @ v[:, : stop + past]
        lengths = weights * sizes[:, None, : stop + past]
        yield start, lengths[..., past:], lengths[..., :past].sum(-1), total
