"""With our Triton kernels, a training pass launches as many kernels for a long text as for a short one."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.gpu.interpreter.run import needs_triton
from tests.paths import ROOT
from tests.processes import run_program

MOST = {"kalman": 40, "momentum": 27, "mamba": 61, "test_time": 112, "slots": 104}
"""Launches of a training pass in bfloat16, the projections' products and casts among them."""
MORE = {"conv": 21, "delta": 70, "gla": 43, "kda": 75, "mamba2": 66, "mlstm": 110, "rwkv7": 208, "rg_lru": 106}


@needs_triton
@pytest.mark.parametrize("most", [MOST, pytest.param(MORE, marks=pytest.mark.slow)], ids=["scans", "more"])
def test_launches_do_not_grow_with_the_length(most: dict[str, int]) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    program = [sys.executable, "-W", "ignore", "-m", "tests.gpu.simulated.with_triton", *most]
    done = run_program(program, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        figures = json.loads(line)
        name, short, long = figures["learner"], figures["train 256"], figures["train 1024"]
        assert short == long, name
        assert short["launches"] <= most[name], name


@needs_triton
def test_a_token_of_all_blocks_is_at_most_150_launches() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    program = [sys.executable, "-W", "ignore", "-m", "tests.gpu.simulated.in_place_step", "60m-flat"]
    done = run_program(program, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["launches"] <= 150 and figures["waits"] == 0
