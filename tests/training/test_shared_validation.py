"""Validation that is divided over processes gives the figures of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from synthe_core.data.stream import Window
from synthe_core.evaluation.bits_per_byte import TextScore, evaluate_bits_per_byte
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.training.distributed.ranks import Ranks
from synthe_core.training.shared_validation import divided, shared_scores


class Rank(Ranks):
    """One of several; what the others have to say is given beforehand."""

    def __init__(self, rank: int, size: int, said: list[Any] | None = None) -> None:
        self.rank, self.size, self._said = rank, size, said

    def gather(self, value: Any) -> list[Any]:
        return [value] if self._said is None else self._said


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_every_batch_is_read_once_and_all_run_as_many(count: int) -> None:
    parts = [divided(range(count), Rank(rank, 3)) for rank in range(3)]
    assert sorted(batch for mine, _ in parts for batch in mine) == list(range(count))
    assert len({len(mine) + len(spare) for mine, spare in parts}) == 1


@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_figures_are_those_of_one_process(count: int) -> None:
    torch.manual_seed(0)
    block = [{"type": "attention", "heads": 2, "when": {"signal": "random", "below": 0.4}}]
    model = LanguageModel(ModelSpec(width=8, blocks=2, block=block), 11).eval()
    torch.nn.init.normal_(model.head.weight, std=0.2)
    texts = torch.randint(11, (count, 2, 9))
    windows = [Window(text[:, :-1], text[:, 1:], 20 + i) for i, text in enumerate(texts)]
    context = ExecutionContext()

    def evaluate(some: Any) -> Any:
        return evaluate_bits_per_byte(model, some, context)

    *_, whole = evaluate(windows)
    said = []
    for rank in range(3):
        *_, own = shared_scores(evaluate, windows, Rank(rank, 3))
        said.append(own.sums())
    *_, joined = shared_scores(evaluate, windows, Rank(0, 3, said))
    assert joined.rows == whole.rows and joined.tokens == whole.tokens
    one, several = whole.values(), joined.values()
    assert (several["loss"], several["bits_per_byte"]) == (one["loss"], one["bits_per_byte"])  # to the bit
    assert several == pytest.approx(one, rel=1e-6)


def test_nothing_read_joins_to_nothing() -> None:
    assert TextScore.joined([TextScore().sums()]).rows == 0
