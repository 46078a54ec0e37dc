"""Every Triton kernel compiles for the architectures that are in use, and fits into them. Nothing is run."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from typing import Any

import pytest

from tests.gpu.interpreter.run import needs_triton
from tests.paths import ROOT
from tests.processes import run_program

ARCHITECTURES = (89, 90, 100, 120)
SPILLS = {  # bytes a thread, with 32 numbers a head
    "span_memory_backward": 512,  # six matrices and their products
    "norm_swiglu": 8,  # two sums of a map with codes
    "slot_memory_forward": 1536,  # a tile's logits to up to 2,048 slots, and their noise as int64
    "slot_memory_backward": 968,  # products of up to 64 tokens
}


def compiled(architecture: int, *names: str) -> list[dict[str, Any]]:
    environment = os.environ | {"SYNTHE_AOT": str(architecture), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    program = [sys.executable, "-W", "ignore", "-m", "tests.gpu.aot.table", *names, "--json"]
    done = run_program(program, timeout=1500, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
def test_our_kernels_compile_and_spill_no_more_than_is_known() -> None:
    kernels = compiled(90)
    assert len(kernels) > 10
    assert not [each for each in kernels if each["spills"] > SPILLS.get(each["kernel"], 0)]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_kernels_compile_for_every_architecture(architecture: int) -> None:
    if importlib.util.find_spec("fla") is None:
        pytest.skip("fla-core is not installed")
    names = ("delta_rule", "linear_attention", "kda", "generalized_delta_rule")
    assert len(compiled(architecture)) > 10
    assert len(compiled(architecture, *(f"fla:{name}" for name in names))) > 10
