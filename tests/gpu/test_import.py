"""Triton is imported by the first launch of a kernel, not before."""

from __future__ import annotations

import sys

from tests.paths import ROOT
from tests.processes import run_program

PROGRAM = """
import sys
import torch
from synthe_core.layers import build, parse
from synthe_core.layers.learner import Pass
for name in ("kalman", "mamba", "tiers", "test_time", "delta", "mlstm"):
    x = torch.zeros(1, 3, 32)
    build(parse({"type": name}), 32)(x, None, Pass.over(x, None, torch.zeros(1, dtype=torch.int64), None))
print([name for name in ("triton", "fla") if name in sys.modules])
"""


def test_a_pass_on_a_cpu_imports_neither_triton_nor_fla() -> None:
    done = run_program([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
