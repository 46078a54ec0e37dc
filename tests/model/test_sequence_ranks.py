"""A model over sequences that are cut over ranks: the loss and the gradient of the whole, and what is sent for it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from synthe_core.hardware.sequence import SequenceRanks
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from tests.sequence_ranks import on_ranks

BATCH, TIME, WIDTH, BLOCKS = 2, 24, 16, 3
MLP = {"type": "mlp", "hidden": 8}
LEARNERS: dict[str, list[dict[str, Any]]] = {
    "composed": [{"type": "delta", "heads": 2}, {"type": "kalman"}, MLP],
    "passed on": [{"type": "attention", "heads": 2, "window": 5}, {"type": "test_time", "heads": 2, "span": 4}, MLP],
    "both": [{"type": "rwkv7", "head_size": 8}, {"type": "fast_weights", "heads": 2}],
}


def model_of(block: list[dict[str, Any]], recompute: bool = False) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(ModelSpec(width=WIDTH, blocks=BLOCKS, block=block), 17, recompute).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def gradients(model: LanguageModel, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])[0]
    loss.total.backward()
    return loss.total.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def parts(model: LanguageModel, tokens: torch.Tensor, size: int) -> list[Any]:
    def work(ranks: SequenceRanks) -> Any:
        own = tokens[:, ranks.rank * TIME // size : (ranks.rank + 1) * TIME // size + 1]
        return *gradients(deepcopy(model), own), ranks.sent

    return on_ranks(size, work)


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_is_that_of_whole_sequences(kind: str, size: int, recompute: bool) -> None:
    model = model_of(LEARNERS[kind], recompute)
    tokens = torch.randint(17, (BATCH, TIME + 1), generator=torch.Generator().manual_seed(1))
    total, whole = gradients(deepcopy(model), tokens)
    results = parts(model, tokens, size)
    torch.testing.assert_close(sum(each[0] for each in results), total, rtol=1e-11, atol=0)
    for name, grad in whole.items():
        torch.testing.assert_close(sum(each[1][name] for each in results), grad, rtol=1e-9, atol=1e-11)


def test_frozen_weights_before_the_first_learner_harm_nothing() -> None:
    model = model_of(LEARNERS["passed on"])
    for parameter in (*model.embedding.parameters(), *model.blocks[0].parameters()):
        parameter.requires_grad_(False)
    tokens = torch.randint(17, (BATCH, TIME + 1), generator=torch.Generator().manual_seed(1))
    whole = gradients(deepcopy(model), tokens)[1]
    results = parts(model, tokens, 2)
    for name, grad in whole.items():
        torch.testing.assert_close(sum(each[1][name] for each in results), grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("learner", "state"),
    [
        ({"type": "delta", "heads": 2, "conv": 0}, 2 * (8 * 8 + 8 * 8)),  # a head: K x K, and K x V
        ({"type": "gla", "heads": 2, "key_size": 4, "conv": 1}, 2 * (4 + 4 * 8)),
        ({"type": "mamba2", "state_size": 4, "head_size": 8, "conv": 1}, 4 * (1 + 4 * 8)),
        ({"type": "momentum"}, 2 * 16),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_sent_depends_on_the_state_and_not_on_the_tokens(
    learner: dict[str, Any], state: int, recompute: bool
) -> None:
    model = model_of([learner], recompute)
    tokens = torch.randint(17, (BATCH, TIME + 1), generator=torch.Generator().manual_seed(1))
    numbers = BATCH * BLOCKS * state * torch.float64.itemsize
    assert [each[2] for each in parts(model, tokens, 2)] == [numbers, numbers]  # forward; and its gradient back
    assert [each[2] for each in parts(model, tokens, 4)] == [n * numbers for n in (1, 4, 4, 3)]
