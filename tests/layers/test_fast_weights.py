"""The fast weights learner: read, decay, write, checked against each variant."""

from __future__ import annotations

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.layers import build, parse
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace
from synthe_core.state import nbytes


def make(width=32, **config):
    torch.manual_seed(0)
    return build(parse({"type": "fast_weights", "heads": 2} | config), width).double()


def run(learner, x, state=None, lengths=None, trace=None):
    return learner(x, state, Pass.over(x, lengths, trace=trace))


def tokens(batch, time, width=32):
    return torch.randn(batch, time, width, dtype=torch.float64, generator=torch.Generator().manual_seed(time))


def published(learner, x):
    """One row by the published order: every token reads, then all fades, then it writes."""
    config, outputs = learner.config, []
    memory = torch.zeros(config.heads, learner.key, learner.value, dtype=x.dtype)
    for token in x[0]:
        q, k, v, gate = learner.project(token).split(learner.features)
        q, k, v = (part.view(config.heads, -1) for part in (q, k, v))
        outputs.append(learner.out(torch.stack([q[h] @ memory[h] for h in range(config.heads)]).flatten()))
        memory = config.decay * memory
        for h in range(config.heads):
            memory[h] = memory[h] + config.strength * torch.sigmoid(gate[h]) * torch.outer(k[h], v[h])
    return torch.stack(outputs)[None], memory[None]


@pytest.mark.parametrize("config", [{}, {"decay": 0.5, "strength": 1.0, "key_size": 3, "value_size": 5}], ids=str)
@pytest.mark.parametrize("time", [1, 2, 70])
def test_it_is_the_published_recurrence(config, time):
    learner, x = make(qk_norm=False, **config), tokens(1, time)
    y, state = run(learner, x)
    expected, memory = published(learner, x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state.memory, memory)


def test_the_first_token_reads_nothing_and_no_token_reads_itself():
    learner, x = make(), tokens(2, 9)
    _, state = run(learner, x[:, :8])
    assert run(learner, x)[0][:, 0].abs().max() == 0
    before = run(learner, x[:, 8:], state)[0]
    with torch.no_grad():
        learner.project.weight[32:] *= -7  # keys, values and gates, but not queries
    torch.testing.assert_close(run(learner, x[:, 8:], state)[0], before)


def test_every_row_writes_its_own_memory():
    """The published code writes the first row's keys and values for the whole batch."""
    learner, x = make(), tokens(3, 20)
    _, state = run(learner, x)
    for row in range(3):
        torch.testing.assert_close(state.memory[row : row + 1], run(learner, x[row : row + 1])[1].memory)
    assert (state.memory[0] - state.memory[1]).abs().max() > 1e-3


def test_with_unit_keys_a_write_is_no_longer_than_its_value():
    learner = make(strength=0.2)
    with torch.no_grad():
        learner.project.weight[-2:] = 0  # gates half open
    for loudness in (1.0, 100.0):
        x = loudness * tokens(1, 1)
        value = learner.project(x).split(learner.features, -1)[2].view(2, 16)
        _, state = run(learner, x)
        torch.testing.assert_close(state.memory[0].flatten(1).norm(dim=-1), 0.1 * value.norm(dim=-1), rtol=1e-4, atol=0)


def test_a_silent_token_lets_the_memory_fade():
    learner, x = make(decay=0.5), tokens(2, 5)
    _, state = run(learner, x)
    _, after = run(learner, torch.zeros(2, 3, 32, dtype=torch.float64), state)
    torch.testing.assert_close(after.memory, state.memory / 8)
    _, padded = run(learner, torch.zeros(2, 3, 32, dtype=torch.float64), state, lengths=torch.tensor([0, 1]))
    torch.testing.assert_close(padded.memory, torch.stack([state.memory[0], state.memory[1] / 2]))


def test_writes_are_learned_through():
    """The published code cuts the gradient at the write; without it keys, values and gates learn nothing."""
    learner, x = make(), tokens(2, 12)
    run(learner, x)[0].square().sum().backward()
    for part in learner.project.weight.grad.split(learner.features):
        assert part.abs().max() > 1e-4


def test_what_is_traced_are_strengths_and_readings():
    trace, learner = Trace(), make(strength=0.3)
    run(learner, 20 * tokens(1, 50), trace=trace)
    shown = {record.name: record.value for record in trace.records}
    assert shown["write"].min() >= 0 and 0.29 < shown["write"].max() <= 0.3
    assert shown["read"].shape == (1, 50, 2, 16)


def test_sizes():
    with pytest.raises(InputError, match="fast_weights: width 512 is not divisible by heads 7") as error:
        make(512, heads=7)
    assert error.value.hint == "the nearest that works is heads: 8"
    learner = make(32, key_size=4, value_size=6)
    assert learner.flops(10) == 2 * (32 * (2 * 8 + 12 + 2) + 12 * 32) + 5 * 2 * 4 * 6
    for time in (1, 30):
        assert nbytes(run(learner, tokens(3, time))[1]) == 3 * 2 * 4 * 6 * 8
