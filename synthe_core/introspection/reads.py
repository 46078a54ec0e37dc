"""Which earlier tokens a reading comes from: exact shares of it, checked by putting the reading together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.introspection.linear_memory import CHUNK, RULES, LinearMemory, linear_memory
from synthe_core.introspection.observe import Asked
from synthe_core.layers.fast_weights import FastWeights

ROWS = 512  # readings at a time
KEPT = 8  # sources of a reading that are kept

Block = tuple[int, Tensor, Tensor, Tensor]
"""The first of n readings; the length of what each head got from each source [H, n, S], from the first state [H, n],
and what it read in all [H, n, V]."""


class Reads(NamedTuple):
    """Where the readings of one learner came from, of the entries at the tokens `at` [N] (None: all tokens).

    sources [N, k]  the tokens that gave most, the most first; -1 where there are fewer.
    shares  [N, k]  how much of the reading: the length of what a token gave over the sum of such lengths, all heads.
    reach   [N]     how many tokens back on average, weighted by share.
    read    [H, N]  length of what each head read.
    error           largest difference between the sum of what the sources gave and what the operator answered, over the
                    largest answer.
    """

    path: str
    learner: str
    op: str
    at: np.ndarray | None
    sources: np.ndarray
    shares: np.ndarray
    reach: np.ndarray
    read: np.ndarray
    error: float

    @property
    def focus(self) -> np.ndarray:
        """The largest share [N]: 1 where a reading comes from one token only."""
        return self.shares[:, 0]


@torch.no_grad()
def follow(asked: Asked, time: int) -> Reads | None:
    """Follows the readings of a memory back; None where its entries stand at no tokens that are known."""
    at = None if asked.at is None else asked.at[0]
    count = time if at is None else len(at)
    given = asked.arguments
    first = given["selected"] if "selected" in given else next(v for v in given.values() if isinstance(v, Tensor))
    if not count or first.shape[1] % count:
        return None
    steps = first.shape[1] // count  # of a token: DeltaProduct takes several
    blocks, answer = _blocks(asked)
    late = 1 if isinstance(asked.learner, FastWeights) else 0  # it reads what those before it have written
    sources = np.full((count, KEPT), -1, dtype=np.int64)
    shares = np.zeros((count, KEPT), dtype=np.float32)
    reach = np.zeros(count, dtype=np.float32)
    read = np.zeros((answer.shape[0], count), dtype=np.float32)
    worst = 0.0
    place = torch.arange(count, device=first.device) if at is None else at
    for start, given_by, remembered, total in blocks:
        worst = max(worst, float((total - answer[:, start : start + total.shape[1]]).abs().max()))
        which = torch.arange(start, start + total.shape[1], device=first.device)
        last = (which + 1) % steps == 0  # a token reads after its last step
        token = which[last] // steps + late
        got = given_by.sum(0)[last]
        got = F.pad(got, (0, -got.shape[1] % steps)).unflatten(1, (-1, steps)).sum(-1)
        kept = token < count
        token, got = token[kept], got[kept]
        whole = got.sum(1) + remembered.sum(0)[last][kept]
        share = got / whole.clamp_min(1e-30)[:, None]
        best = share.topk(min(KEPT, share.shape[1]), dim=1)
        row, width = token.cpu().numpy(), best.values.shape[1]
        shares[row, :width] = best.values.cpu().numpy()
        sources[row, :width] = np.where(best.values.cpu().numpy() > 0, place[best.indices].cpu().numpy(), -1)
        back = place[token][:, None] - place[: share.shape[1]]
        reach[row] = (share * back).sum(1).cpu().numpy()
        read[:, row] = total[:, last][:, kept].norm(dim=-1).cpu().numpy()
    where = None if at is None else at.cpu().numpy()
    scale = max(float(answer.abs().max()), 1e-30)
    learner = asked.learner.config.type
    return Reads(asked.path, learner, asked.op.name, where, sources, shares, reach, read, worst / scale)


def _blocks(asked: Asked) -> tuple[Iterator[Block], Tensor]:
    """The readings in blocks, and what the operator really answered [H, T, V] in float64."""
    out = asked.op(**asked.arguments)
    out = (out[0] if isinstance(out, tuple) else out).double()
    name, given = asked.op.name, asked.arguments
    if name in RULES:
        return _linear(linear_memory(name, given)), out[0].transpose(0, 1)
    if name == "gated_average":
        gate, value = given["gate"][0].double(), given["value"][0].double()
        state = torch.zeros_like(value[0]) if given.get("state") is None else given["state"][0].double()
        return _average(gate, value, state), out
    return _softmax(asked), _answers(asked, out)


def _linear(memory: LinearMemory) -> Iterator[Block]:
    sizes = memory.value.norm(dim=-1)
    for start in range(0, memory.time, ROWS):
        stop = min(start + ROWS, memory.time)
        coefficients, asking = memory.rows(start, stop)
        held = asking @ memory.state
        total = coefficients @ memory.value[:, :stop] + held
        yield start, coefficients.abs() * sizes[:, None, :stop], held.norm(dim=-1), total


def _average(logits: Tensor, value: Tensor, state: Tensor) -> Iterator[Block]:
    """h_t = a_t h_{t-1} + (1 - a_t) v_t channel by channel: one head, whose writes count by what is left."""
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
            # Fading is cut at the chunk's end, so that neither factor can overflow.
            left, right = (queries - end).clamp_max(0).exp() * later, (end - faded[chunk]).exp() * written[chunk]
            total = total + left * right.sum(0)
            got[:, chunk] = (left.square() @ right.square().T).sqrt()
            for s in range(chunk.start, chunk.stop - 1) if chunk.stop > start + 1 else ():
                own = slice(max(0, s - start), max(0, chunk.stop - 1 - start))  # readings within the chunk
                part = (queries[own] - faded[s]).exp() * written[s]
                total[own] += part
                got[own, s] = part.norm(dim=-1)
        yield start, got[None], remembered[None], total[None]


def _answers(asked: Asked, out: Tensor) -> Tensor:
    """What attention answered, by heads, with zeros for tokens that did not ask."""
    if asked.op.name == "window_attention":
        return out[0].transpose(0, 1)
    selected = asked.arguments["selected"][0]
    everyone = out.new_zeros(len(selected), *out.shape[1:])
    everyone[selected] = out[: int(selected.sum())]
    return everyone.transpose(0, 1)


def _softmax(asked: Asked) -> Iterator[Block]:
    """softmax(q·k / √K) v over the window, grouped heads; what is read is zero where no key may be."""
    given = asked.arguments
    probed = asked.op.name == "probed_attention"
    selected = given["selected"][0] if probed else None
    k, v = (given[name][0].double().transpose(0, 1) for name in ("k", "v"))
    q = given["q"].double()
    if selected is None:
        q = q[0]
    else:
        everyone = q.new_zeros(len(selected), *q.shape[1:])
        everyone[selected] = q[: int(selected.sum())]
        q = everyone
    q = q.transpose(0, 1)
    group = q.shape[0] // k.shape[0]
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))
    past, window = k.shape[1] - q.shape[1], given["window"]
    sizes = v.norm(dim=-1)
    valid = given["valid"]
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
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
        total = weights @ v[:, : stop + past]
        lengths = weights * sizes[:, None, : stop + past]
        yield start, lengths[..., past:], lengths[..., :past].sum(-1), total
