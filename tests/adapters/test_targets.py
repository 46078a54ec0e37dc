"""Which matrices a target means."""

from __future__ import annotations

import pytest
import torch

from synthe_core.adapters.spec import LoraSpec
from synthe_core.adapters.targets import find_targets, new_adapter
from synthe_core.errors import InputError
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec

BLOCK = [
    {"type": "conv"},
    {
        "type": "multiscale_memory",
        "tiers": [{"every": 1, "rule": "momentum"}, {"every": 4, "size": 8, "rule": "kalman"}],
    },
    {"type": "delta", "heads": 2},
    {"type": "mlp", "hidden": 32},
]


def model(**rest) -> LanguageModel:
    torch.manual_seed(0)
    with torch.device("meta"):
        return LanguageModel(ModelSpec.model_validate({"width": 16, "blocks": 2, "block": BLOCK} | rest), 257)


def places(*names):
    return [f"blocks.{block}.learners.{name}" for block in (0, 1) for name in names]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("delta", places("2.project", "2.out")),
        ("delta.out", places("2.out")),
        ("gate_up", places("3.gate_up")),
        ("2.out", places("2.out")),
        ("blocks.1.learners.2.out", ["blocks.1.learners.2.out"]),
        ("blocks.0.*.gate_up", ["blocks.0.learners.3.gate_up"]),
        ("*.learners.[23].out", places("2.out", "3.out")),
        ("head", ["head"]),
        ("confidence", ["confidence.inner", "confidence.out"]),
    ],
)
def test_what_a_target_means(target, expected):
    assert list(find_targets(model(tie=False, confidence={}), [target])) == expected


def test_a_tier_of_a_multiscale_memory():
    names = list(find_targets(model(), ["multiscale_memory.tier2"]))
    assert names and all(".slow.0." in name or ".condition.0" in name for name in names)
    assert set(names) < set(find_targets(model(), ["multiscale_memory"])) < set(find_targets(model(), ["all-linear"]))


def test_targets_add_up_in_the_order_of_the_model():
    names = list(find_targets(model(), ["mlp", "delta.out", "gate_up"]))
    assert names == [f"blocks.{block}.learners.{name}" for block in (0, 1) for name in ("2.out", "3.gate_up", "3.out")]


@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        ("dleta", "unknown target 'dleta'", "did you mean 'delta'?"),
        ("gateup", "unknown target 'gateup'", "did you mean 'gate_up'?"),
        ("all", "unknown target 'all'", "all-linear"),
        ("attention", "unknown target 'attention'", "known: "),
        ("embedding", "unknown target 'embedding'", ""),
        ("head", "head shares its matrix", "leave it out"),
        ("", "unknown target ''", "known: "),
    ],
)
def test_a_target_of_nothing(target, message, hint):
    with pytest.raises(InputError, match=r"train\.lora\.targets: ") as refused:
        find_targets(model(), ["mlp", target])
    assert message in refused.value.message and hint in refused.value.hint


def test_a_matrix_gets_no_more_rank_than_it_can_have():
    built = LanguageModel(ModelSpec.model_validate({"width": 16, "blocks": 2, "block": BLOCK}), 257)
    adapter = new_adapter(built, LoraSpec(rank=12, alpha=6))
    sizes = {name: module.weight.shape for name, module in find_targets(built, ["all-linear"]).items()}
    assert {min(12, *shape) for shape in sizes.values()} > {12}
    for name, change in adapter.maps.items():
        rank = min(12, *sizes[name])
        assert change.lora_A.shape == (rank, sizes[name][1]) and change.lora_B.shape == (sizes[name][0], rank)
        assert (
            change.scaling == 0.5
            and not change.lora_B.any()
            and float(change.lora_A.abs().max()) <= sizes[name][1] ** -0.5
        )


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"rank": 16}, 8.0),
        ({"rank": 64}, 4.0),
        ({"rank": 64, "rslora": True}, 4.0),
        ({"rank": 16, "alpha": 32}, 2.0),
        ({"rank": 16, "alpha": 32, "rslora": True}, 8.0),
    ],
)
def test_the_scale_of_a_change(options, scale):
    assert LoraSpec(**options).scaling == scale
