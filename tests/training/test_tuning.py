"""What `auto` decides, given what is measured."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from synthe_core.hardware import placement
from synthe_core.hardware import rates as hardware_rates
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.probe import probe
from synthe_core.model.language_model import LanguageModel
from synthe_core.profiling import device_memory
from synthe_core.training import tuning
from synthe_core.training.settings import Settings
from synthe_core.training.tuning import PassTimer, micro_batch_sizes, tune


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))


def decide(recipe, monkeypatch, seconds, room=1e12, matmul=2.0, **train):
    """The choices for a machine on which a pass of so many rows takes `seconds(rows, precision)`."""
    config = recipe(
        runtime={"precision": "auto"}, data={"sequence": 512}, **{"batch": 16, "micro_batch": "auto"} | train
    )
    rates = {torch.float32: 1.0, torch.bfloat16: matmul}
    chosen = partial(placement.choose_precision, rates=lambda device, dtype: rates[dtype])
    monkeypatch.setattr(tuning, "choose_precision", chosen)
    monkeypatch.setattr(PassTimer, "seconds", lambda self, rows, precision: seconds(rows, precision))
    monkeypatch.setattr(device_memory, "available_for_rows", lambda model, device: room)
    monkeypatch.setattr(device_memory, "row_bytes", lambda *a: 1e6)
    settings = Settings(ExecutionContext())
    hardware = replace(probe(), features=frozenset({"amx_bf16"}))
    notices = [event.message for event in tune(LanguageModel(config.model, 31), config, settings, hardware)]
    return settings, notices


@pytest.mark.parametrize(("share", "chosen"), [(0.5, "bfloat16"), (0.95, "float32")])
def test_bfloat16_where_passes_are_faster_with_it(recipe, monkeypatch, share, chosen):
    def seconds(rows, precision):
        return rows * (share if precision == "bfloat16" else 1.0)

    settings, notices = decide(recipe, monkeypatch, seconds)
    assert settings.precision == chosen and f"{1 / share:.2f} times" in notices[0]


def test_slow_bfloat16_products_skip_the_trials(recipe, monkeypatch):
    settings, _ = decide(recipe, monkeypatch, lambda rows, precision: 1 / 0, matmul=1.0, batch=1)
    assert settings.precision == "float32"


def test_the_fastest_micro_batch_per_token(recipe, monkeypatch):
    cost = {2: 0.2, 4: 0.3, 8: 0.7, 16: 1.6}
    settings, notices = decide(recipe, monkeypatch, lambda rows, precision: cost[rows])
    assert settings.micro_batch == 4 and "the fastest measured" in notices[1]


@pytest.mark.parametrize(("room", "rows"), [(9e6, 8), (1.0, 1)])
def test_no_more_than_fits(recipe, monkeypatch, room, rows):
    settings, _ = decide(recipe, monkeypatch, lambda rows, precision: 0.1, room=room)
    assert settings.micro_batch == rows


def test_settings_of_the_recipe_take_precedence(recipe, monkeypatch):
    settings, notices = decide(recipe, monkeypatch, lambda rows, precision: 0.1, micro_batch=5)
    assert settings.micro_batch == 5 and notices[1] == "micro-batch 5 of 16: the recipe says so"


def test_a_choice_is_cached_so_that_runs_repeat(recipe, monkeypatch):
    first, _ = decide(recipe, monkeypatch, lambda rows, precision: {2: 0.2, 4: 0.3, 8: 0.7, 16: 1.6}[rows])
    again, notices = decide(recipe, monkeypatch, lambda rows, precision: 1 / 0)
    assert again == first and len(notices) == 1 and "measured before" in notices[0]
    other, _ = decide(recipe, monkeypatch, lambda rows, precision: 0.1, batch=8)
    assert other.micro_batch == 8, "another batch is another question"


def test_a_size_that_runs_out_of_memory_ends_the_search(recipe, monkeypatch):
    def seconds(rows, precision):
        if rows > 4:
            raise torch.OutOfMemoryError("out of memory")
        return 0.1

    settings, _ = decide(recipe, monkeypatch, seconds)
    assert settings.micro_batch == 4


def test_the_ladder():
    assert micro_batch_sizes(16) == [1, 2, 4, 8, 16]
    assert micro_batch_sizes(12) == [1, 2, 3, 6, 12]
    assert micro_batch_sizes(5) == [1, 2, 3, 5]
    assert micro_batch_sizes(1) == [1]


@pytest.mark.parametrize("recompute", [False, True])
def test_the_memory_of_a_pass_is_counted(recipe, recompute):
    config = recipe(model={"blocks": 4})
    model = LanguageModel(config.model, 257, recompute)
    settings = Settings(ExecutionContext())

    def measured(rows, length):
        timer = PassTimer(model, settings, length)
        return device_memory.row_bytes(model, timer.batch(rows), settings.context)

    assert measured(2, 64) == pytest.approx(measured(1, 64), rel=0.1)
    assert measured(1, 128) == pytest.approx(2 * measured(1, 64), rel=0.35)
    least = 64 * 4 * 16 * 4  # every block keeps its input at least
    assert measured(1, 64) > least
    assert model.recompute == recompute


def test_recomputing_takes_less(recipe):
    config = recipe(model={"blocks": 4})
    settings = Settings(ExecutionContext())
    sizes = []
    for recompute in (False, True):
        model = LanguageModel(config.model, 257, recompute)
        sizes.append(device_memory.row_bytes(model, PassTimer(model, settings, 64).batch(2), settings.context))
    assert sizes[1] < sizes[0] / 2


def test_trials_change_no_state(recipe):
    model = LanguageModel(recipe().model, 257)
    settings = Settings(ExecutionContext())
    random, weights = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    assert PassTimer(model, settings, 16).seconds(2, "bfloat16") > 0
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_measuring_draws_no_random_numbers():
    random = torch.get_rng_state()
    hardware_rates.measure_matmul.__wrapped__(size=64)
    assert torch.equal(random, torch.get_rng_state())


def test_a_container_limits_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(device_memory, "CGROUP", tmp_path)
    free = device_memory.available_bytes(torch.device("cpu"))
    assert free > 2000
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    assert device_memory.available_bytes(torch.device("cpu")) == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert device_memory.available_bytes(torch.device("cpu")) > 2000
