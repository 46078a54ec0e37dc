"""Predicted memory: it is linear where it claims to be, the sum of its parts, and close to that of a real step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from synthe_core.errors import InputError, WorkError
from synthe_core.hardware.probe import Gpu, Hardware, probe
from synthe_core.model.classifier import build_model
from synthe_core.profiling.activations import Plane, saved_by_learner
from synthe_core.profiling.adapted import FrozenBase
from synthe_core.profiling.allocations import measure_allocations
from synthe_core.profiling.cards import CARDS, card_memory, usable_bytes, usable_on
from synthe_core.profiling.chart import matched_transformer, page, serving_curve
from synthe_core.profiling.fit import Fit, fit
from synthe_core.profiling.footprint import Estimate, Footprint
from synthe_core.profiling.measure import measure_step
from synthe_core.recipe.schema import Recipe
from synthe_core.training.gradients import accumulate_gradients
from synthe_core.training.objectives import objective_for
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import settings_for
from synthe_core.training.tuning import PassTimer
from tests.paths import RECIPES

MIB = 1 << 20


def recipe(*block: Any, **keys: Any) -> Recipe:
    model = {"width": 64, "blocks": 4, "block": list(block or ["momentum", {"type": "delta", "heads": 2}, "mlp"])}
    runtime = {"device": "cpu", "precision": "float32", "threads": 1, **keys.pop("runtime", {})}
    return Recipe.model_validate(
        {
            "model": model | keys.pop("model", {}),
            "data": {"sequence": 128, "tokenizer": {"type": "bytes"}},
            "train": {"batch": 8, **keys.pop("train", {})},
            "runtime": runtime,
        }
    )


def test_allocations_are_counted_to_the_byte() -> None:
    def work() -> torch.Tensor:
        big = torch.ones(MIB // 4)  # 1 MiB
        other = torch.ones(MIB)  # 4 MiB
        del big
        return other

    result = measure_allocations(work)
    assert result.peak == 5 * MIB
    assert result.retained == 4 * MIB


def test_a_plane_interpolates_and_extrapolates_its_points() -> None:
    plane = Plane.fit(lambda blocks, rows: 7 + 3 * blocks + 11 * rows + 5 * blocks * rows)
    assert plane.at(6, 9) == 7 + 18 + 99 + 270
    twice = Plane.fit(lambda blocks, rows: 2 * (4 * blocks * rows))
    assert twice.extrapolate(Plane.fit(lambda blocks, rows: 4 * blocks * rows), 3.0).at(2, 3) == 3 * 2 * 4 * 6


@pytest.mark.parametrize(
    ("case", "rows"),
    [
        ({}, 8),
        ({}, 3),
        ({"train": {"optimizer": "adamw"}}, 3),
        ({"runtime": {"recompute": True}}, 8),
        ({"model": {"depth": {"min": 1}}}, 8),
        ({"runtime": {"precision": "bfloat16"}}, 3),
    ],
    ids=["muon", "in parts", "adamw", "recompute", "depth", "bfloat16"],
)
def test_a_step_takes_the_predicted_memory(case: dict[str, Any], rows: int) -> None:
    """By torch's own allocator, which forgets nothing and keeps nothing back."""
    config = recipe(**case)
    estimate = Estimate(config, probe())
    predicted = estimate.training(rows)
    chosen = settings_for(config, probe())
    chosen.precision, chosen.micro_batch = predicted.precision, rows
    torch.manual_seed(0)
    model = build_model(config.model, estimate.vocab, config.runtime.recompute)
    optimizer = Optimizer(model, config.train)
    batch = PassTimer(model, chosen, config.data.sequence).batch(8)

    def step() -> None:
        optimizer.zero_grad()
        accumulate_gradients(objective_for(model), model, batch, chosen, sequence=config.data.sequence)
        optimizer.step(1e-3)

    step()
    optimizer.zero_grad()
    most = measure_allocations(step).peak
    there = predicted.parts["parameters"] + predicted.parts["optimizer"] + predicted.parts["data"]
    assert predicted.peak - there == pytest.approx(most, rel=0.1)
    state = sum(x.numel() * x.element_size() for x in optimizer.tensors().values() if x.dim())
    assert predicted.parts["optimizer"] == state


def test_an_encoder_has_a_footprint_too() -> None:
    text = {"sources": "x.csv", "labels": "path", "sequence": 64, "tokenizer": {"type": "bytes"}}
    encoder = Recipe.model_validate(
        {
            "model": {
                "width": 32,
                "blocks": 2,
                "block": ["spectral", "mlp"],
                "head": {"type": "classify", "classes": 3},
            },
            "data": text,
            "runtime": {"device": "cpu", "precision": "float32"},
        }
    )
    estimate = Estimate(encoder, probe())
    assert estimate.training(4).peak > estimate.training(2).peak > 0
    assert estimate.serving(2).parts["state"] == 0


def test_activations_are_listed_by_learner() -> None:
    config = recipe()
    model = build_model(config.model, 257)
    chosen = settings_for(config, probe())
    result = saved_by_learner(model, PassTimer(model, chosen, 64).batch(1), chosen)
    assert result.keys() == {"momentum", "delta", "mlp", "rest"}
    assert all(size > 0 for size in result.values())
    twice = saved_by_learner(model, PassTimer(model, chosen, 64).batch(2), chosen)
    assert twice["mlp"] == 2 * result["mlp"]


def test_a_long_context_is_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe()
    real = Estimate(config, probe()).training(2, 512, 2).peak
    monkeypatch.setattr("synthe_core.profiling.activations.MAX_MEASURED_LENGTH", 128)
    assert Estimate(config, probe()).training(2, 512, 2).peak == pytest.approx(real, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "thl-tiny", "synapse-tiny", "baselines/transformer", "baselines/mamba2"])
@pytest.mark.parametrize(("rows", "length"), [(8, 256), (4, 512)])
def test_shipped_recipes_take_the_predicted_memory(name: str, rows: int, length: int) -> None:
    """In a process of its own, by what the operating system counts."""
    path = RECIPES / f"{name}.yaml"
    config = Recipe.load(path, ["runtime.precision=float32", "runtime.threads=1", f"train.batch={rows}"])
    predicted = Estimate(config, probe()).training(rows, length, rows)
    truth = measure_step(config, rows=rows, length=length, precision="float32")
    if truth is None:
        pytest.skip("this system does not report a process's peak")
    assert predicted.peak == pytest.approx(truth, rel=0.1)


@pytest.mark.slow
def test_a_failing_measured_step_is_reported() -> None:
    with pytest.raises(WorkError, match="out of memory with 8 rows of 128 tokens"):
        measure_step(recipe(), rows=8, length=128, precision="float32", limit=1 << 20)


# What fits


def counted(peak: dict[str, float]) -> Any:
    """A footprint without a measurement: bytes a row, by whether activations are made again and by the length."""

    def estimate(config: Recipe, rows: int) -> Footprint:
        a_row = peak["recomputed" if config.runtime.recompute else "stored"] * config.data.sequence / 128
        fixed = peak["muon" if config.train.optimizer == "muon" else "adamw"]
        parts = {"parameters": fixed, "activations": rows * a_row}
        return Footprint("training", rows, config.data.sequence, "float32", parts, {})

    return estimate


PEAKS = {"stored": 100.0, "recomputed": 20.0, "adamw": 120.0, "muon": 80.0}


def tried(room: float, **train: Any) -> Fit:
    return fit(recipe(train=train), room, counted(PEAKS))


def test_fit_takes_the_largest_pass_that_fits() -> None:
    assert tried(10_000).changes == {"train.micro_batch": 8}
    assert tried(10_000).next_larger is None
    result = tried(80 + 250)
    assert result.changes == {"train.micro_batch": 2}
    assert result.next_larger == (4, 80 + 400)
    assert result.flags == "--set train.micro_batch=2"


def test_fit_reduces_settings_one_at_a_time() -> None:
    again = tried(80 + 90)
    assert again.changes == {"train.micro_batch": 4, "runtime.recompute": True}
    assert again.flags == "--set train.micro_batch=4 --set runtime.recompute=true"
    assert [what for what, _ in again.rejected] == ["as it is, one sequence per pass"]
    other = tried(80 + 25, optimizer="adamw")
    assert other.changes == {"train.micro_batch": 1, "runtime.recompute": True, "train.optimizer": "muon"}
    short = tried(80 + 15)
    assert short.changes == {"train.micro_batch": 1, "runtime.recompute": True, "data.sequence": 64}
    with pytest.raises(WorkError, match="not even one sequence of 64 tokens fits"):
        tried(85)


PLAIN = Hardware("cpu", "a processor", 2, 8 << 30, available=5 << 30)
SMALL = Hardware("cuda", "a processor", 8, 1 << 36, gpu=Gpu("RTX 4060", 8188 << 20, (8, 9)))
H200 = Hardware("cuda", "a processor", 64, 1 << 40, gpu=Gpu("H200", 143771 << 20, (9, 0)))


def test_room_is_that_of_the_machine() -> None:
    assert usable_on(PLAIN, "cpu") == 4 << 30
    assert 7.0 * (1 << 30) < usable_on(SMALL, "cuda") < 7.2 * (1 << 30)
    assert usable_on(H200, "cuda") > 18 * usable_on(SMALL, "cuda")
    assert usable_bytes(100) == 0


def test_the_same_recipe_fits_a_large_card_in_one_pass_and_a_small_one_in_several() -> None:
    """A footprint of a gigabyte a sequence: all eight on the H200, four on a card of 8 GB, after room for the rest."""
    gigabyte = {"stored": 1e9, "recomputed": 1e8, "adamw": 2e9, "muon": 1.5e9}
    on = {
        name: fit(recipe(), usable_on(machine, machine.device), counted(gigabyte)) for name, machine in MACHINES.items()
    }
    assert {name: result.changes for name, result in on.items()} == {
        "H200": {"train.micro_batch": 8},
        "8 GB": {"train.micro_batch": 4},
        "CPU": {"train.micro_batch": 2},
    }


MACHINES = {"H200": H200, "8 GB": SMALL, "CPU": PLAIN}


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("8 GiB", 8192),
        ("8", 8192),
        ("8192MiB", 8192),
        ("0.5gi", 512),
        ("h200", 143771),
        ("rtx 4090", 24564),
    ],
)
def test_cards_by_size_and_by_name(text: str, mib: int) -> None:
    assert card_memory(text) == mib << 20


def test_a_gigabyte_of_a_card_is_a_power_of_ten() -> None:
    assert [card_memory(text) for text in ("8GB", "0.5g")] == [8 * 10**9, 5 * 10**8]


@pytest.mark.parametrize("text", ["", "0GB", "-8GB", "RTX 9999 Super Ultra", "8XB"])
def test_invalid_cards(text: str) -> None:
    with pytest.raises(InputError, match="no such card"):
        card_memory(text)


def test_the_table_of_cards_is_sorted() -> None:
    rounded = [int(name.rpartition(" ")[2].removesuffix("GB")) for name in CARDS]
    assert rounded == sorted(rounded)
    assert all(0.9 < size / 1024 / sold < 1.05 for size, sold in zip(CARDS.values(), rounded, strict=True))


# The chart


def test_the_compared_transformer_has_as_many_parameters() -> None:
    config = recipe(model={"blocks": 12})
    other = matched_transformer(config)
    own, its = (each.meta_model(257).parameter_count() for each in (config, other))
    assert its == pytest.approx(own, rel=0.1)
    assert [entry.type for entry in other.model.block] == ["attention", "mlp"]  # type: ignore[attr-defined]


def test_a_recurrent_model_is_flat_and_a_transformer_is_not() -> None:
    config = recipe()
    flat, steep = serving_curve(config, "own", 4), serving_curve(matched_transformer(config), "other", 4)
    assert flat.points[0][1] == flat.points[-1][1]
    assert steep.points[-1][1] > 20 * steep.points[0][1]
    drawn = page("memory <of> it", [("serving", [flat, steep])])
    assert "<h1>memory &lt;of&gt; it</h1>" in drawn
    assert drawn.count("<circle") == 2 * len(flat.points)
    assert "http" not in drawn


@pytest.mark.parametrize("quantize", [None, "nf4", "int4"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_of_an_adapter_takes_the_predicted_memory(quantize: str | None, recompute: bool) -> None:
    lora = {"rank": 4, "quantize": quantize}
    config = recipe(
        {"type": "attention", "heads": 2}, "mlp", runtime={"recompute": recompute}, train={"batch": 8, "lora": lora}
    )
    estimate = Estimate(config, probe())
    predicted = estimate.training(3)
    chosen = settings_for(config, probe())
    chosen.precision, chosen.micro_batch = predicted.precision, 3
    base = FrozenBase(config)
    model = base.build(config.model, estimate.vocab, "cpu")
    held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    assert predicted.parts["parameters"] == held
    optimizer = Optimizer(model, config.train)
    batch = PassTimer(model, chosen, config.data.sequence).batch(8)

    def step() -> None:
        optimizer.zero_grad()
        accumulate_gradients(objective_for(model), model, batch, chosen, sequence=config.data.sequence)
        optimizer.step(1e-3)

    step()
    optimizer.zero_grad()
    most = measure_allocations(step).peak
    there = predicted.parts["parameters"] + predicted.parts["optimizer"] + predicted.parts["data"]
    assert predicted.peak - there == pytest.approx(most, rel=0.1)
    state = sum(x.numel() * x.element_size() for x in optimizer.tensors().values() if x.dim())
    assert predicted.parts["optimizer"] == state
    whole = Estimate(recipe({"type": "attention", "heads": 2}, "mlp"), probe()).training(3)
    assert predicted.parts["gradients"] < 0.5 * whole.parts["gradients"]
    if quantize is not None:
        assert predicted.parts["parameters"] < 0.4 * whole.parts["parameters"]


def test_a_recipe_has_no_stored_formats() -> None:
    with pytest.raises(InputError, match="how matrices are stored is known of a model only") as error:
        Estimate(recipe(train={"batch": 8, "lora": {"rank": 4, "quantize": "as_stored"}}), probe())
    assert "name the model's file" in error.value.hint


@pytest.mark.slow
def test_a_process_that_trains_an_adapter_takes_the_predicted_memory() -> None:
    """By the operating system: within a tenth."""
    config = recipe(
        {"type": "attention", "heads": 8},
        "mlp",
        model={"width": 512, "blocks": 8},
        train={"batch": 4, "lora": {"rank": 8, "quantize": "int4"}},
    )
    predicted = Estimate(config, probe()).training(4)
    measured = measure_step(config, rows=4, length=128, precision=predicted.precision)
    assert measured is None or predicted.peak == pytest.approx(measured, rel=0.1)
