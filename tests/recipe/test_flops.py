"""The operations that models state are those that run, counted under the operators' reference recurrences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from synthe_core.layers import LAYERS, build, parse
from synthe_core.layers.learner import Learner, Pass
from synthe_core.model.classifier import build_model
from synthe_core.ops.dispatch import OPS, use_kernels
from synthe_core.recipe.accounting import vocabulary_of
from synthe_core.recipe.schema import Recipe
from tests.paths import RECIPES

FOLDER = RECIPES
NAMES = [
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in sorted(FOLDER.rglob("*.yaml"))
    if path.parent.name not in ("merge", "distill")
]
ROUTED = ("experts", "context_routed_moe", "slots", "multiscale_memory")
TIME = 32


def small_and_dense(name: str) -> bool:
    """Whether every token runs everything, at a size that runs here in seconds."""
    model = Recipe.load(FOLDER / f"{name}.yaml").model
    routed = model.depth is not None or any(
        entry.type in ROUTED or getattr(entry, "when", None) is not None  # type: ignore[attr-defined]
        for entry in model.learners
    )
    return model.width < 256 and not routed


DENSE = [name for name in NAMES if small_and_dense(name)]
LOW, HIGH = 0.99, 1.03  # of what is stated: what is above is norms, gates and activations, which are not counted

ARITHMETIC = (
    *("add", "sub", "rsub", "mul", "div", "neg", "reciprocal", "pow", "sqrt", "rsqrt", "exp"),
    *("sigmoid", "silu", "softplus", "tanh", "lerp", "addcmul"),
)


def one_each(*arguments: Any, out_shape: Any = None, **options: Any) -> int:
    """An operation for every number of the result."""
    return int(torch.Size(out_shape).numel())


def solution(matrix: Any, *arguments: Any, out_shape: Any = None, **options: Any) -> int:
    """Elimination in matrices [..., K, K]: 2 K^3 / 3 operations each."""
    return round(torch.Size(matrix[:-2]).numel() * 2 * matrix[-1] ** 3 / 3)


def attention(query: Any, key: Any, value: Any, *arguments: Any, out_shape: Any = None, **options: Any) -> int:
    """Torch's count for its attention on a CPU, which it has no formula of."""
    return int(sdpa_flop_count(query, key, value))


def everything() -> FlopCounterMode:
    """torch's counter of matrix products, which counts linear equations and what is done number by number as well."""
    names = [name + place for name in ARITHMETIC for place in ("", "_")]
    names = [name for name in names if hasattr(torch.ops.aten, name)]
    mapping = {getattr(torch.ops.aten, name): one_each for name in names}
    mapping[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] = attention
    return FlopCounterMode(display=False, custom_mapping=mapping | {torch.ops.aten._linalg_solve_ex: solution})


def causal_convolution(u: Tensor, taps: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`long_conv` from no past, without the products of taps with the zeros before the text."""
    y = u * taps[:, 0]
    for lag in range(1, min(taps.shape[1], u.shape[1])):
        y[:, lag:].add_(u[:, :-lag] * taps[:, lag])
    return y, F.pad(u, (0, 0, taps.shape[1] - 1, 0))[:, u.shape[1] :]


@pytest.fixture(autouse=True)
def _definitions(monkeypatch):
    """Every operator by its definition; experts only where tokens are sent."""
    monkeypatch.setattr(OPS["long_conv"], "reference", causal_convolution)
    for name in LAYERS:
        LAYERS[name]
    with torch.no_grad(), use_kernels(**dict.fromkeys(OPS, "reference") | {"expert_mlp": "sorted"}):
        yield


def model_of(name: str) -> tuple[Any, Tensor]:
    recipe = Recipe.load(FOLDER / f"{name}.yaml")
    torch.manual_seed(0)
    vocab = vocabulary_of(recipe)
    return build_model(recipe.model, vocab), torch.randint(vocab, (1, TIME))


@pytest.mark.parametrize("name", DENSE)
def test_dense_recipes_state_what_runs(name):
    model, tokens = model_of(name)
    stated = tokens.numel() * model.flops(TIME)
    with everything() as counter:
        model(tokens)
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    products = sum(count for name, count in counts.items() if name.removeprefix("aten.").rstrip("_") not in ARITHMETIC)
    assert 0.8 * stated < products <= stated  # the rest of it is done on states, number by number
    assert LOW <= sum(counts.values()) / stated <= HIGH


CASES: dict[str, dict[str, Any]] = {name: {"type": name} for name in LAYERS} | {
    "delta, signals": {"type": "delta", "signals": True},
    "delta, several steps": {"type": "delta", "householder": 3},
    "delta, adding": {"type": "delta", "overwrite": False},
    "attention, window": {"type": "attention", "window": 7},
    "attention, gate": {"type": "attention", "gate": True},
}
UNCOUNTED = ("spectral", "slots")
"""FFTs, which torch does not count; writes to a bank, whose definition in torch goes over all of it (counted one by one
in tests/layers/test_slots_operations.py)."""


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNCOUNTED])
def test_learners_state_what_runs(name):
    width = 192
    torch.manual_seed(0)
    learner: Learner[Any] = build(parse(CASES[name]), width)
    x = torch.randn(1, TIME, width)
    ctx = Pass.over(x)
    with everything() as counter:
        learner(x, None, ctx)
    stated = TIME * learner.flops(TIME) - sum(map(float, ctx.skipped))
    assert 0.96 <= counter.get_total_flops() / stated <= HIGH
