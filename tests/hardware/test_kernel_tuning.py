"""Kernels that are preferred because they were timed: chosen, remembered by machine, and used where they serve."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.events import Measurement, Notice
from synthe_core.hardware import kernel_tuning
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.kernel_tuning import (
    Timing,
    candidate_kernels,
    select_kernel,
    tune_kernels,
    tuned_kernels,
    tuned_kernels_path,
    unique_calls,
)
from synthe_core.hardware.placement import choose_device, choose_precision
from synthe_core.hardware.probe import Gpu, Hardware, fingerprint, probe
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.model.classifier import build_model
from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.dispatch import Call, record_ops, use_kernels
from synthe_core.recipe.schema import Recipe
from synthe_core.training import tuning
from synthe_core.training.settings import Settings
from synthe_core.training.tuning import PassTimer, tune_all

LIBRARIES = {"torch": "2.13", "triton": "3.2", "fla-core": "0.6"}
CARD = Gpu("RTX 4060", 8188 << 20, (8, 9))
H200 = Gpu("H200", 143771 << 20, (9, 0))
MACHINES = {
    "8 GB": Hardware("cuda", "p", 8, 1 << 35, gpu=CARD, gpus=(CARD,), libraries=LIBRARIES, compiler="cc"),
    "H200": Hardware("cuda", "p", 64, 1 << 40, gpu=H200, gpus=(H200,), libraries=LIBRARIES, compiler="cc"),
    "AMX": Hardware("cpu", "p", 64, 1 << 38, features=frozenset({"avx512f", "amx_bf16"}), compiler="cc"),
    "plain": Hardware("cpu", "p", 4, 1 << 34, features=frozenset({"sse2"})),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (kernel_tuning, tuning):  # compiled kernels stay where they are
        monkeypatch.setattr(module, "cache_dir", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"width": 32, "blocks": 1, "block": [{"type": "delta", "heads": 2}, "mlp"]},
            "data": {"sequence": 64, "tokenizer": {"type": "bytes"}},
            "train": {"batch": 2, "budget": "2steps"},
            "runtime": {"device": "cpu", "precision": "float32"},
        }
    )


def call(device: str, time: int = 64) -> Call:
    q = torch.zeros(1, time, 2, 16)
    beta = torch.zeros(1, time, 2)
    arguments = {"q": q, "k": q, "v": q, "beta": beta, "log_decay": beta, "state": None}
    return dataclasses.replace(Call.of(arguments), device=device, grad=True)


# What is chosen on machines that are not here


def test_which_kernel_serves_on_which_machine() -> None:
    def choice(machine: str, device: str) -> str:
        return next(each.kernel for each in delta_rule.explain(call(device), MACHINES[machine]) if each.chosen)

    with ExecutionContext(precision="bfloat16").activate():
        assert choice("8 GB", "cuda") == choice("H200", "cuda") == "fla"
    assert choice("8 GB", "cuda") == "triton"  # fla rounds to bfloat16
    assert choice("plain", "cpu") == "chunked"
    bare = dataclasses.replace(MACHINES["H200"], libraries={"torch": "2.13"})
    verdicts = {each.kernel: each for each in delta_rule.explain(call("cuda"), bare)}
    assert verdicts["chunked"].chosen
    assert "fla-core and triton not installed" in str(verdicts["fla"].reason)
    plain = {each.kernel: each.reason for each in delta_rule.explain(call("cpu"), MACHINES["plain"])}
    assert "CUDA" in str(plain["fla"])
    assert "compiler" in str(plain["native"])


@pytest.mark.parametrize(
    ("machine", "device", "precision"),
    [
        ("8 GB", "cuda", "bfloat16"),
        ("H200", "cuda", "bfloat16"),
        ("AMX", "cpu", "bfloat16"),
        ("plain", "cpu", "float32"),
    ],
)
def test_device_and_precision_on_which_machine(machine: str, device: str, precision: str) -> None:
    def rates(kind: str, dtype: torch.dtype) -> float:  # what tensor cores and tiles are for
        return 4e12 if dtype == torch.bfloat16 else 1e12

    hardware = MACHINES[machine]
    assert choose_device("auto", hardware).value == device
    assert choose_precision("auto", device, hardware, rates).value == precision


def test_fingerprints_differ_where_speed_would() -> None:
    names = {name: fingerprint(machine) for name, machine in MACHINES.items()}
    assert len(set(names.values())) == len(names)
    assert fingerprint(MACHINES["AMX"]) == names["AMX"]
    later = dataclasses.replace(MACHINES["AMX"], libraries={"torch": "3.0"})
    assert fingerprint(later) != names["AMX"]
    fuller = dataclasses.replace(MACHINES["AMX"], available=5)
    assert fingerprint(fuller) == names["AMX"]  # what is free now changes nothing


# What is timed, and what is made of it


def test_the_ranking_changes_only_for_a_clearly_faster_kernel() -> None:
    times = [Timing("native", 1.0), Timing("chunked", 0.97), Timing("fla", 4.0)]
    assert select_kernel(times, "native") == "native"
    assert select_kernel([Timing("native", 1.0), Timing("chunked", 0.9)], "native") == "chunked"


def test_only_kernels_that_serve_every_call_are_candidates() -> None:
    calls = [call("cpu"), call("cpu", 100)]
    plain, default = candidate_kernels(delta_rule, calls, MACHINES["plain"])
    assert default == "chunked"
    assert plain == ["chunked"]
    assert candidate_kernels(delta_rule, calls, MACHINES["AMX"])[1] in ("native", "chunked")


def test_calls_of_one_shape_are_timed_once(recipe: Recipe) -> None:
    model = build_model(recipe.model.model_copy(update={"blocks": 3}), 257)
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    with record_ops() as recorder:
        model.loss(tokens, tokens)
    assert len([op for op, *_ in recorder.calls if op is delta_rule]) == 3
    assert len(unique_calls(recorder.calls)[delta_rule]) == 1


def test_a_faster_kernel_is_stored_and_used(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """With made-up times, by which the torch form is the fastest of the delta rule's."""
    made_up = {"chunked": 1.0, "native": 2.0, "fla": 3.0}
    monkeypatch.setattr(
        kernel_tuning, "time_kernels", lambda op, calls, names: [Timing(name, made_up.get(name, 9.0)) for name in names]
    )
    context = context_for_recipe(recipe, "cpu")
    model = build_model(recipe.model, 257)
    if len(candidate_kernels(delta_rule, [call("cpu")], probe())[0]) < 2:
        pytest.skip("one kernel serves here")
    events = list(tune_kernels(model, PassTimer(model, Settings(context), 64).batch(1), recipe, context, probe()))
    assert tuned_kernels(recipe, "cpu", probe())["delta_rule"] == "chunked"
    assert any(isinstance(event, Notice) and "2.00 times as fast here as native" in event.message for event in events)
    assert any(isinstance(event, Measurement) and event.case == "delta_rule" for event in events)
    assert tuned_kernels(recipe, "cpu", MACHINES["plain"]) == {}  # of another machine nothing is known
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"sequence": 32})})
    assert tuned_kernels(other, "cpu", probe()) == {}

    tokens = torch.zeros(1, 16, dtype=torch.int64)
    with context_for_recipe(recipe, "cpu").activate():
        delta_rule.used.clear()
        model.loss(tokens, tokens)
        assert delta_rule.used == {"chunked"}
        with use_kernels(delta_rule="reference"):  # what a recipe says, it says
            delta_rule.used.clear()
            model.loss(tokens, tokens)
            assert delta_rule.used == {"reference"}
        delta_rule.used.clear()
        with torch.no_grad():
            model.next_logits(tokens[:, :1])
        assert delta_rule.used != {"chunked"}


def test_a_tuned_kernel_that_refuses_is_passed_over() -> None:
    q = torch.randn(1, 5, 1, 4)
    beta = torch.ones(1, 5, 1)
    with ExecutionContext(tuned_kernels={"delta_rule": "fla"}).activate():
        delta_rule.used.clear()
        delta_rule(q, q, q, beta, None, None)
    assert delta_rule.used
    assert "fla" not in delta_rule.used


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kernels": 3}', '{"kernels": {"delta_rule": "gone", "nobody": "x"}}']
)
def test_a_damaged_file_is_no_choice(recipe: Recipe, text: str) -> None:
    path = tuned_kernels_path(recipe, "cpu", probe())
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert tuned_kernels(recipe, "cpu", probe()) == {}


def test_tuning_all_stores_the_choices_that_training_uses(recipe: Recipe) -> None:
    events = list(tune_all(recipe))
    last: Any = events[-1]
    assert last.values["precision"] == "float32"
    assert last.values["micro_batch"] in (1, 2)
    assert tuned_kernels_path(recipe, "cpu", probe()).is_file()
