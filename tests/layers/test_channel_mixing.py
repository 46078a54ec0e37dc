"""Channel mixing: its equation from any state, beside fla's plain form of it."""

from __future__ import annotations

import pytest
import torch

from synthe_core.layers import build, parse
from synthe_core.layers.learner import Pass


@pytest.mark.parametrize("hidden", [None, 20])
def test_is_the_equation_of_its_docstring_from_any_state(hidden: int | None) -> None:
    torch.manual_seed(0)
    learner = build(parse({"type": "channel_mixing", "hidden": hidden}), 16).double()
    assert learner.key.out_features == (hidden or 64)
    x, before = torch.randn(2, 7, 16, dtype=torch.float64), torch.randn(2, 1, 16, dtype=torch.float64)
    y, after = learner(x, before, Pass.over(x))
    previous = torch.cat([before, x[:, :-1]], 1)
    hidden_units = torch.relu((x + learner.mix * (previous - x)) @ learner.key.weight.T) ** 2
    torch.testing.assert_close(y, hidden_units @ learner.value.weight.T)
    assert torch.equal(after, x[:, -1:])


def test_without_a_mix_a_token_is_alone() -> None:
    learner = build(parse("channel_mixing"), 16)
    with torch.no_grad():
        learner.mix.zero_()
    x = torch.randn(1, 5, 16)
    alone = learner(x[:, 4:], None, Pass.over(x[:, 4:]))[0]
    torch.testing.assert_close(learner(x, None, Pass.over(x))[0][:, 4:], alone)
