"""The operations that `slots` states are those of its definition, counted one by one in a program of scalars."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthe_core.layers.slots import Slots
from synthe_core.ops.slot_memory import Policy, slot_memory

J, H, K, V, N = 24, 2, 8, 6, 3


class Counter:
    """Products and sums of numbers of the memory; what is compared is not counted."""

    def __init__(self) -> None:
        self.operations = 0

    def dot(self, a: np.ndarray, b: np.ndarray) -> float:
        self.operations += 2 * len(a)
        return float(a @ b)

    def each(self, x: np.ndarray, operations: int = 1) -> np.ndarray:
        self.operations += operations * x.size
        return x


def memory(named: dict, chunk: int, policy: Policy, count: Counter) -> np.ndarray:
    """The bank after a text that begins at a tick, by the definition of `slot_memory`, of one row."""
    query, key, value, strength, bank, ages = (
        named[name][0].numpy().copy() for name in ("query", "key", "value", "strength", "bank", "ages")
    )
    for first in range(0, len(query), chunk):
        frame = range(first, min(first + chunk, len(query)))
        affinity, best, nearest = {}, {}, {}
        for t in frame:
            share = np.zeros(J)
            for h in range(H):
                logits = np.array([count.dot(query[t, h], bank[j, h, :K]) for j in range(J)])
                chosen = np.argsort(-logits, kind="stable")[:N]
                weights = np.exp(logits[chosen] - logits[chosen[0]])
                weights /= weights.sum()
                sum(count.each(w * bank[j, h, K:], 2) for w, j in zip(weights, chosen, strict=True))
                share[chosen] += weights / H
            ages = count.each(ages)  # two columns grow older, two fade
            ages[:, 0] = np.where(share > 0, 0, ages[:, 0] + 1)
            ages[:, 1] += 1
            ages[:, 2] = policy.decay * ages[:, 2] + (1 - policy.decay) * J * share
            ages[:, 3] *= policy.decay
            to_slots = [sum(count.dot(key[t, h], bank[j, h, :K]) for h in range(H)) / H for j in range(J)]
            earlier = [sum(count.dot(key[t, h], key[e, h]) for h in range(H)) / H for e in range(first, t)]
            best[t] = int(np.argmax(to_slots))
            affinity[t], nearest[t] = to_slots[best[t]], max(earlier, default=-2)
        if len(frame) < chunk:
            break
        refining = [t for t in frame if affinity[t] >= policy.match]
        idle = ages[:, :2].min(1) * policy.staleness / policy.horizon
        worth = count.each(ages[:, 2] + ages[:, 3] - idle, 4)
        worth[[best[t] for t in refining]] = np.inf
        novel = [t for t in frame if affinity[t] < policy.match and nearest[t] < policy.match]
        novel.sort(key=lambda t: -(1 - max(affinity[t], nearest[t])))
        for t in refining:
            record = np.concatenate([key[t], value[t]], 1)
            bank[best[t]] += count.each(strength[t] * (record - bank[best[t]]), 3)
            ages[best[t], 1] = 0
            ages[best[t], 3] += (1 - policy.decay) * J * strength[t]
        for t, j in zip(novel[: policy.writes], np.argsort(worth, kind="stable"), strict=False):
            if np.isfinite(worth[j]):
                bank[j] = np.concatenate([key[t], count.each(strength[t] * value[t])], 1)
                ages[j] = [0, 0, 1, ages[j, 3] + (1 - policy.decay) * J * strength[t]]
    return bank


@pytest.mark.parametrize(("chunk", "time"), [(1, 40), (8, 40), (8, 21), (32, 96)])
def test_it_states_what_its_definition_counts(chunk, time):
    """`match` is so low that every token refines a slot, which is the most that is stated."""
    torch.manual_seed(0)
    config = Slots.Config(slots=J, heads=H, key_size=K, value_size=V, reads=N, writes=1, chunk=chunk, match=-0.99)
    learner, width = Slots(config, 16), 16
    unit = torch.nn.functional.normalize
    named = {
        "query": torch.randn(1, time, H, K, dtype=torch.float64),
        "key": unit(torch.randn(1, time, H, K, dtype=torch.float64), dim=-1),
        "value": torch.randn(1, time, H, V, dtype=torch.float64),
        "strength": torch.rand(1, time, dtype=torch.float64),
        "bank": torch.randn(1, J, H, K + V, dtype=torch.float64),
        "ages": torch.rand(1, J, 4, dtype=torch.float64),
        "pending": torch.zeros(1, chunk, H, K + V, dtype=torch.float64),
        "pending_strength": torch.zeros(1, chunk, dtype=torch.float64),
        "start": torch.zeros(1, dtype=torch.int64),
        "lengths": None,
    }
    named["bank"][..., :K] = unit(named["bank"][..., :K], dim=-1)
    count = Counter()
    bank = memory(named, chunk, learner.policy, count)
    torch.testing.assert_close(slot_memory(**named, policy=learner.policy).bank[0], torch.from_numpy(bank))
    matrices = 2 * width * (2 * H * K + 2 * H * V + 1) + 2 * H * V * width
    assert count.operations / time == pytest.approx(learner.flops(time) - matrices, rel=0.02)
