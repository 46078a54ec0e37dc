"""Recipes on a simulated CUDA device: every pass runs without mixed devices, and the host waits only where WAITS says.

Each test starts one process, since a guard must be loaded before torch. Where it cannot be built, tests are skipped.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.simulated.build import Unavailable, guard_library
from tests.paths import RECIPES, ROOT
from tests.processes import run_program

SMALL = [
    "synapse-tiny",
    "synthe-tiny",
    "thl-tiny",
    "tiny",
    "tlm-encoder-tiny",
    "tlm-gpt-tiny",
    *(f"baselines/{name}" for name in ["deltanet", "hyena", "kda", "mamba", "mamba2", "mlstm", "rwkv7", "transformer"]),
]
FOLDERS = (".", "baselines", "bench", "ablations")
ALL = sorted(str(path.relative_to(RECIPES)) for folder in FOLDERS for path in (RECIPES / folder).glob("*.yaml"))
LARGE = ("125m", "350m", "1.3b")
PROBE = "a probe's queries are packed: how many there are decides what is computed"
DEPTH = "a router leaves tokens out of a block: how many there are decides what is computed"
EXPERTS = "float32 experts are multiplied one by one; in bfloat16 torch groups them without a wait"
WAITS = {
    "copy from the host @ model/depth.py": DEPTH,
    "copy from the host @ ops/attention.py": PROBE,
    "index by mask @ model/depth.py": DEPTH,
    "index by mask @ ops/attention.py": PROBE,
    "index_put by mask @ autograd": DEPTH,
    "nonzero @ layers/conditional_gate.py": PROBE,
    "nonzero @ model/depth.py": DEPTH,
    "nonzero @ ops/attention.py": PROBE,
    "tolist @ model/depth.py": DEPTH,
    "tolist @ ops/attention.py": PROBE,
    "tolist @ ops/expert_mlp.py": EXPERTS,
}
"""Where the host may wait for the device in a pass, "kind @ file" -> why."""


@pytest.fixture(scope="module", autouse=True)
def guard() -> None:
    try:
        guard_library()
    except Unavailable as error:
        pytest.skip(str(error))


def simulated(*arguments: str, limit: float = 300.0) -> list[dict[str, Any]]:
    """The JSON lines of a module of tests.gpu.simulated."""
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    done = run_program(command, timeout=limit, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(results: list[dict[str, Any]]) -> None:
    """No pass failed; every wait is in the list."""
    for result in results:
        for phase, figures in result.items():
            if phase == "recipe":
                continue
            assert "error" not in figures, (result["recipe"], phase, figures)
            places = {re.sub(r":[0-9]+$", "", wait) for wait in figures["waits"]}
            assert places <= WAITS.keys(), (result["recipe"], phase, figures["waits"])


def test_the_device_counts_and_refuses() -> None:
    (result,) = simulated("tests.gpu.simulated.selftest")
    assert result["mixed"] == "Expected all tensors to be on the same device, but found cuda:0 and cpu! (add)"
    assert result["launches"] == {"mm": 1, "sum": 1}
    assert result["waits"] == ["item"]
    assert result["gradient"] == "cuda:0"


def test_small_recipes_run_on_the_device() -> None:
    check(simulated("tests.gpu.simulated.recipes", "--set", "model.blocks=2", *SMALL))


def test_a_matrix_is_cast_once_and_its_gradient_is_not_rounded() -> None:
    (errors,) = simulated("tests.gpu.simulated.mixed_linear")
    assert errors["casts of matrices"] == 1
    assert errors["weight"] < 1e-6 and errors["bias"] < 1e-6 and errors["input"] < 4e-3  # the input's is bfloat16


def test_weights_of_16_bits_are_multiplied_as_they_are() -> None:
    (result,) = simulated("tests.gpu.simulated.weights")
    assert 0 < result["error"] < 3e-2 and result["waits"] == 0
    assert result["summary"].startswith("bfloat16 weights")


def test_a_window_of_attention_is_not_copied_for_a_token() -> None:
    for result in simulated("tests.gpu.simulated.attention_window"):
        assert result["error"] < 1e-5 and result["buffers"] == 1, result


def test_a_step_waits_once() -> None:
    """Of training for the gradient's norm, of generating for the sampled tokens. Everything else is queued."""
    (steps,) = simulated("tests.gpu.simulated.steps")
    assert [re.sub(r":[0-9]+$", "", each) for each in steps["training"]["waits"]] == ["item @ training/step.py"]
    assert [re.sub(r":[0-9]+$", "", each) for each in steps["engine"]["waits"]] == ["tolist @ inference/sampler.py"]
    assert all(sum(steps[each]["waits"].values()) == 1 for each in ("training", "engine"))
    assert steps["engine"]["embedding"] == "cpu"  # numpy reads it
    assert steps["spilled"] == "cuda:0"  # a state that was in a file is back where the model is


@pytest.mark.slow
def test_the_device_script_runs_dry() -> None:
    (result,) = simulated("tests.gpu.device", "--dry-run", limit=1200.0)
    assert result["dry"] and not [part for part, each in result.items() if isinstance(each, dict) and "error" in each]
    for part in ("laws", "kernels"):
        assert all(error < 1e-3 for errors in result[part].values() for error in errors.values()), result[part]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in ALL if Path(name).stem not in LARGE])
def test_every_recipe_runs_on_the_device(recipe: str) -> None:
    check(simulated("tests.gpu.simulated.recipes", "--set", "model.blocks=2", recipe, limit=1200.0))
