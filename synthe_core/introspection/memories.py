"""The content of a linear memory: its norm at every token, and what remains of one token's write."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from synthe_core.introspection.linear_memory import RULES, LinearMemory, linear_memory
from synthe_core.introspection.observe import MemoryCall
from synthe_core.introspection.reads import ROWS, Reads
from synthe_core.introspection.series import Series

OVERWRITTEN = 0.5  # a write of which less remains counts as overwritten


@torch.no_grad()
def memory_series(call: MemoryCall, reads: Reads) -> list[Series]:
    """Series of a memory by token, besides those that its learner emits: writes, readings and norms."""
    shown = [
        ("distance", "how many tokens back a reading comes from, weighted by share", reads.distance[None]),
        ("max_share", "share of a reading that comes from one token", reads.max_share[None]),
    ]
    if len(reads.read) > 1:
        shown.append(("max_head", "the head with the largest reading", reads.read.argmax(0)[None].astype(np.float32)))
        shown.append(("read", "norm of each head's reading", reads.read))
    if call.op.name in RULES:
        memory = linear_memory(call.op.name, call.arguments)
        steps = memory.time // reads.read.shape[1]
        last = slice(steps - 1, None, steps)
        keys, values = (x.norm(dim=-1).float().cpu().numpy()[:, last] for x in (memory.write, memory.value))
        shown += [
            ("written", "norm of the written key times its strength", keys),
            ("value", "norm of the written value", values),
            ("memory_norm", "Frobenius norm of the memory after the token", memory_norms(memory)[:, last]),
        ]
    whole = {"max_head"}
    source = (call.path, reads.learner)
    return [Series(*source, name, "memory", what, rows, reads.at, name in whole) for name, what, rows in shown]


def memory_norms(memory: LinearMemory) -> np.ndarray:
    """‖S_t‖ of every head after every token [H, T]; mLSTM's memory as it is stored, divided by its scale."""
    state = memory.state.float()
    write, value, decay = memory.write.float(), memory.value.float(), memory.log_decay.exp().float()
    recall, erase = (None if x is None else x.float() for x in (memory.recall, memory.erase))
    sizes = []
    for t in range(memory.time):
        after = decay[:, t, :, None] * state + write[:, t, :, None] * value[:, t, None]
        if recall is not None and erase is not None:
            after = after + erase[:, t, :, None] * (recall[:, t, None] @ state)
        state = after
        sizes.append(state.norm(dim=(1, 2)))
    return torch.stack(sizes, 1).cpu().numpy()


class Fate(NamedTuple):
    """What remains of one token's write, read with its own key; one entry for each head.

    left     how much of it would be read now, 1 = all, 0 = nothing; erasing past zero gives less.
    gone     the token after which less than half of it was left, -1 if more is left.
    by       the token that overwrote most of it, -1 without one; `took` is how much.
    answers  cosine between the current reading at that key and the written value.
    now      [k] the tokens that contribute most to the current reading, over all heads, and their `shares`.
    """

    path: str
    learner: str
    token: int
    left: np.ndarray
    gone: np.ndarray
    by: np.ndarray
    took: np.ndarray
    answers: np.ndarray
    now: np.ndarray
    shares: np.ndarray


@torch.no_grad()
def fate(call: MemoryCall, reads: Reads, token: int) -> Fate | None:
    """Follows the write of `token` to the end of the text; None for a memory without keys, or without that token."""
    if call.op.name not in RULES:
        return None
    memory = linear_memory(call.op.name, call.arguments)
    count = reads.read.shape[1]
    places = np.arange(count) if reads.at is None else reads.at
    if token not in places:
        return None
    steps = memory.time // count
    write = int(np.flatnonzero(places == token)[0]) * steps + steps - 1
    key = memory.write[:, write : write + 1]
    key = key / key.square().sum(-1, keepdim=True).clamp_min(1e-30)  # with this query the write itself reads 1
    course = []
    for start in range(write, memory.time, ROWS):
        stop = min(start + ROWS, memory.time)
        coefficients, rest = memory.rows(start, stop, key.expand(-1, stop - start, -1))
        course.append(coefficients[:, :, write])
    left = torch.cat(course, 1)
    lost = torch.nn.functional.pad(left[:, :-1] - left[:, 1:], (1, 0))
    took, by = lost.max(1)
    below = left < OVERWRITTEN
    place = torch.tensor(places, device=left.device).repeat_interleave(steps)[write:]
    gone = torch.where(below.any(1), place[below.int().argmax(1)], -1)
    final = coefficients[:, -1]
    answer = (final[:, None] @ memory.value)[:, 0] + (rest[:, -1:] @ memory.state)[:, 0]
    answers = torch.nn.functional.cosine_similarity(answer, memory.value[:, write], dim=-1)
    got = (final.abs() * memory.value.norm(dim=-1)).sum(0).unflatten(0, (-1, steps)).sum(-1)
    share = (got / got.sum().clamp_min(1e-30)).topk(min(len(got), reads.sources.shape[1]))
    taker = torch.where(took > 0, place[by], -1)
    final_left, gone_at, overwriter, how_much, like = (
        x.cpu().numpy() for x in (left[:, -1], gone, taker, took, answers)
    )
    now = places[share.indices.cpu().numpy()]
    source = (call.path, reads.learner, token)
    return Fate(*source, final_left, gone_at, overwriter, how_much, like, now, share.values.cpu().numpy())
