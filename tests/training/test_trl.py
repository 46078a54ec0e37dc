"""Losses and gradients equal those of TRL's trainers on the same batch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.interop.huggingface.auto_classes.test_trl import LIMIT, python
from tests.paths import ROOT
from tests.processes import run_program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LIMIT)]
CASES = {"sft", "dpo sigmoid", "dpo normalized", "dpo ipo", "dpo robust", "kto", "orpo"}
TOLERANCE = 1e-5
__all__ = ["python"]  # the fixture: an environment with TRL


def test_losses_and_gradients_are_those_of_trl(python: Path, tmp_path: Path) -> None:
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_program(
        [python, "-m", "tests.training.trl_losses", tmp_path],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=surroundings,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    assert {each["case"] for each in results} == CASES
    for each in results:
        assert each["transformers"] == pytest.approx(each["trl"], abs=TOLERANCE), each
        assert each["imported"] == pytest.approx(each["trl"], abs=TOLERANCE), each
        assert each["largest"] > 1e-2 and each["gradient"] < TOLERANCE, each
        assert each["parameters"][0] == each["parameters"][1], each
        assert each["embedding"] < TOLERANCE, each
        assert each["norms"][1] == pytest.approx(each["norms"][0], rel=TOLERANCE), each
