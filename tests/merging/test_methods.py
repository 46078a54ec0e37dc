"""What holds for every method of the table, and each one's definition on numbers that can be followed by hand."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.merging.method import Method
from synthe_core.merging.methods import METHODS

ALL = list(METHODS)
NEEDED = {"nearswap": {"t": 0.1}}


def draw(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def call(name: str, models: list[Tensor], base: Tensor | None = None, seed: int = 0, **values: Any) -> Tensor:
    method = Method(name)
    random = {"generator": torch.Generator().manual_seed(seed)} if method.random else {}
    return method(models, base, NEEDED.get(name, {}) | values, **random)


def inputs(name: str, *shape: int) -> tuple[list[Tensor], Tensor]:
    method = Method(name)
    base, *models = draw(1 + min(3, method.count.most or 3), *shape)
    return [base + 0.1 * model for model in models], base


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(7, 5), (5,), (), (3, 2, 4), (1, 1)])
def test_merging_copies_of_a_model_gives_that_model(name: str, shape: tuple[int, ...]) -> None:
    models, _ = inputs(name, *shape)
    same = [models[0].clone() for _ in models]
    merged = call(name, same, models[0].clone())
    assert merged.shape == shape
    assert (merged - models[0]).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_unchanged_and_the_result_is_deterministic(name: str) -> None:
    models, base = inputs(name, 6, 9)
    before = [each.clone() for each in (*models, base)]
    values = {key: (0.5,) for key in ("density",) if key in Method(name).parameters}
    one, other = (call(name, models, base, **values) for _ in range(2))
    assert torch.equal(one, other) and torch.isfinite(one).all()
    assert all(torch.equal(a, b) for a, b in zip(before, (*models, base), strict=True))


@pytest.mark.parametrize("name", [n for n in ALL if Method(n).needs_base and Method(n).count.most is None])
def test_zero_task_vectors_and_zero_weights_stay_finite(name: str) -> None:
    """Task vectors of zero add nothing of their own, and zeros in base and models stay finite."""
    zeros = torch.zeros(4, 6)
    assert torch.equal(call(name, [zeros, zeros.clone()], zeros), zeros)


@pytest.mark.parametrize("name", ALL)
def test_every_method_has_a_summary_and_a_source(name: str) -> None:
    method = Method(name)
    assert method.summary.endswith(".") or method.summary.endswith(":"), method.summary
    assert len(method.paper) > 20
    assert all(each.description for each in method.parameters.values())
    module = inspect.getmodule(method.function)
    assert module is not None and module.__name__.endswith(f".{name}")  # a file of its own


def test_linear_is_the_average() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])
    assert call("linear", [a, b], weight=(1.0, 3.0)).tolist() == [2.5, -1.0]
    assert call("linear", [a, b], weight=(1.0, 3.0), normalize=False).tolist() == [10.0, -4.0]


def test_task_arithmetic_adds_differences() -> None:
    base, a, b = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]), torch.tensor([1.0, 4.0])
    values = {"weight": (2.0, 1.0), "lambda": 0.5}
    assert call("task_arithmetic", [a, b], base, **values).tolist() == [2.0, 2.5]


def test_ties_trims_votes_and_averages() -> None:
    """The published steps on three differences of four entries, at density 0.5."""
    base = torch.tensor([10.0, 10.0, 10.0, 10.0])
    deltas = torch.tensor([[4.0, 3.0, 1.0, 0.0], [-1.0, 2.0, 0.0, 3.0], [5.0, -6.0, 1.0, 2.0]])
    # trimmed: [4 3 . .], [. 2 . 3], [5 -6 . .]; signs of the sums 9, -1, 0, 3: + - + +; means of those that agree
    expected = base + torch.tensor([4.5, -6.0, 0.0, 3.0])
    models = [base + delta for delta in deltas]
    assert torch.equal(call("ties", models, base, density=(0.5,)), expected)
    # by count, the second entry has two pluses and one minus
    counted = call("ties", models, base, density=(0.5,), sign="count")
    assert torch.equal(counted, base + torch.tensor([4.5, 2.5, 0.0, 3.0]))
    # weights vote and average: the third counts for little, and the second entry's sum is 3 + 2 - 0.6
    weighted = call("ties", models, base, density=(0.5,), weight=(1.0, 1.0, 0.1))
    assert torch.allclose(weighted, base + torch.tensor([4.5 / 1.1, 2.5, 0.0, 3.0]))


def test_dare_keeps_the_expectation() -> None:
    base, model = torch.zeros(200, 200), torch.ones(200, 200)
    merged = call("dare_linear", [model], base, density=(0.25,))
    assert set(merged.unique().tolist()) == {0.0, 4.0}
    assert abs(float(merged.mean()) - 1) < 5 * math.sqrt(3 / 40_000)
    assert set(call("dare_linear", [model], base, density=(0.25,), rescale=False).unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(merged, call("dare_linear", [model], base, density=(0.25,), seed=1))


def test_della_keeps_the_large_more_often() -> None:
    """The chance of each rank, from many rows, within five standard errors; and the expectation."""
    base, row = torch.zeros(20_000, 5), torch.tensor([0.1, 0.5, 0.2, 0.4, 0.3])
    merged = call("della_linear", [row.repeat(20_000, 1)], base, density=(0.5,), epsilon=(0.2,))
    chances = torch.tensor([0.3, 0.7, 0.4, 0.6, 0.5])
    error = 5 * (chances * (1 - chances) / 20_000).sqrt()
    assert (((merged != 0).float().mean(0) - chances).abs() < error).all()
    assert ((merged.mean(0) - row).abs() < row / chances * error).all()


def test_breadcrumbs_drop_both_ends() -> None:
    base = torch.zeros(100)
    model = torch.randperm(100, generator=torch.Generator().manual_seed(0)).float() + 1
    merged = call("breadcrumbs", [model], base, density=(0.6,), gamma=(0.1,))
    assert sorted(merged[merged != 0].tolist()) == [float(n) for n in range(31, 91)]


def test_slerp_goes_along_the_circle() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    half = call("slerp", [b], a, t=0.5)
    assert torch.allclose(half, torch.full((2,), math.sqrt(2)))
    assert torch.equal(call("slerp", [b], a, t=0.0), a)


def test_the_karcher_mean_is_where_the_arcs_balance() -> None:
    units = [each / each.norm() for each in draw(5, 8)]
    mean = call("karcher", units, max_iter=100, tol=1e-9)
    pulls = []
    for unit in units:
        angle = torch.acos((unit @ mean).clamp(-1, 1))
        pulls.append((unit - mean * (unit @ mean)) * angle / angle.sin())
    assert abs(float(mean.norm()) - 1) < 1e-6
    assert float(sum(pulls, torch.zeros(8)).norm()) < 1e-4


def test_model_stock_stays_at_the_base_where_differences_are_orthogonal() -> None:
    base = torch.tensor([1.0, 1.0, 1.0])
    models = [base + torch.tensor(d) for d in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])]
    assert torch.equal(call("model_stock", models, base), base)


def test_sce_selects_what_varies() -> None:
    base = torch.zeros(4)
    models = [torch.tensor([1.0, 5.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])]
    merged = call("sce", models, base, select_topk=0.25)
    assert merged[[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]
    assert float(merged[1]) == pytest.approx((25 * 5 + 1 * 1) / 26)  # weights are the mean squares


@pytest.mark.parametrize(
    ("name", "parameter", "value", "message"),
    [
        ("ties", "density", 0, "density 0: input should be greater than 0"),
        ("ties", "density", 1.5, "less than or equal to 1"),
        ("ties", "density", float("nan"), "density nan"),
        ("ties", "weight", "much", "weight 'much'"),
        ("ties", "weight", True, "should be a number"),
        ("ties", "normalize", 3, "normalize 3"),
        ("ties", "sign", "vote", "'sum' or 'count'"),
        ("slerp", "t", 2, "less than or equal to 1"),
        ("karcher", "max_iter", 0, "greater than or equal to 1"),
        ("della", "epsilon", -0.1, "greater than or equal to 0"),
    ],
)
def test_values_outside_their_range(name: str, parameter: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Method(name).parameter(parameter).check(value)
    assert message in caught.value.message


def test_unknown_names() -> None:
    with pytest.raises(InputError) as caught:
        Method("tise")
    assert caught.value.hint == "did you mean 'ties'?"
    with pytest.raises(InputError) as caught:
        Method("ties").parameter("densty")
    assert caught.value.hint == "did you mean 'density'?"
    with pytest.raises(InputError, match="slerp merges 1 model beside the base, and got 2"):
        Method("slerp").check_count(2)
