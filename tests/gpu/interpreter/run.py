"""Runs a file of checks in Triton's interpreter, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.processes import run_program

FOLDER = Path(__file__).parent
LIMIT = 1500.0  # seconds, of the slow checks
NOTHING_SELECTED = 5  # pytest's exit status

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (pip install 'synthe[gpu]' on Linux)"
)


def check(name: str, marked: str = "not slow") -> None:
    """Fails with the output of pytest unless every check of `check_NAME.py` with these marks passes."""
    program = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", marked]
    program += ["-o", "python_files=check_*.py", "-o", "timeout=0", f"{FOLDER}/check_{name}.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_program(program, timeout=LIMIT, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode in (0, NOTHING_SELECTED if marked == "slow" else 0), done.stdout + done.stderr


def checks() -> list[str]:
    return sorted(path.stem.removeprefix("check_") for path in FOLDER.glob("check_*.py"))
