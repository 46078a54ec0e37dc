"""Several processes give the numbers of one: the same losses, validated on the same text, and the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from synthe_core.storage.checkpoint import Checkpoint
from tests.training.conftest import files
from tests.training.distributed.conftest import Runs
from tests.training.distributed.together import curve
from tests.training.distributed.variants import NAMES

RELATIVE, ABSOLUTE = 1e-5, 1e-6
SHORT = ["adamw", "60m", "kto", "orpo", "dpo lora"]
SEVERAL = ["two copies", "two shards", "four copies", "two of two shards"]


def assert_equal_curves(one: Path, several: Path) -> None:
    a, b = curve(one), curve(several)
    assert [(step, phase) for step, phase, _ in a] == [(step, phase) for step, phase, _ in b]
    for (step, phase, loss), (_, _, other) in zip(a, b, strict=True):
        assert other == pytest.approx(loss, rel=RELATIVE, abs=ABSOLUTE), (step, phase)


def assert_equal_checkpoints(one: Path, several: Path) -> None:
    """The same tensors, nearly the same weights, and one place in the text."""
    a, b = files(one), files(several)
    for name in ("model.safetensors", "adapter_model.safetensors"):
        assert a.get(name, {}).keys() == b.get(name, {}).keys()
        for key, tensor in a.get(name, {}).items():
            torch.testing.assert_close(b[name][key], tensor, rtol=1e-3, atol=1e-3)
    here, there = (Checkpoint.open(run, latest=True) for run in (one, several))
    assert here.training_state()["cursor"] == there.training_state()["cursor"]
    assert (here.manifest.step, here.manifest.tokens) == (there.manifest.step, there.manifest.tokens)


@pytest.mark.parametrize("mesh", ["two copies", "two shards"])
def test_short_runs_of_two_processes(mesh: str, short_runs: Runs) -> None:
    one, several = short_runs("one", SHORT), short_runs(mesh, SHORT)
    for name in SHORT:
        assert_equal_curves(one[name], several[name])
        assert_equal_checkpoints(one[name], several[name])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", SEVERAL)
@pytest.mark.parametrize("name", NAMES)
def test_fifty_steps(name: str, mesh: str, long_runs: Runs) -> None:
    one, several = long_runs("one", NAMES), long_runs(mesh, NAMES)
    assert_equal_curves(one[name], several[name])
    assert_equal_checkpoints(one[name], several[name])
