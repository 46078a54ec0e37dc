"""TRL's trainers take a checkpoint of ours. TRL has an environment of its own here, where it can be installed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from synthe_core.storage.checkpoint import Checkpoint
from tests.evaluation.models import saved
from tests.interop.huggingface.auto_classes.models import transformers
from tests.paths import ROOT
from tests.processes import run_program

LIMIT = 1200  # seconds
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LIMIT)]
BLOCK = [{"type": "delta", "heads": 2}, {"type": "mlp", "hidden": 32}]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with TRL, and besides it the packages that are installed here."""
    for package in ("peft", "datasets", "accelerate"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("trl")
    venv.create(folder, with_pip=False, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", scheme="venv", vars=paths))
    (packages / "here.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    try:
        done = run_program([*command, "--target", packages, "trl"], capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        pytest.skip("installing trl takes too long")
    if done.returncode:
        pytest.skip(f"trl cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    python = Path(sysconfig.get_path("scripts", scheme="venv", vars=paths)) / "python"
    done = run_program([python, "-c", "import trl.trainer.sft_trainer"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"trl does not run with transformers {transformers.__version__}: {done.stderr[-200:]}")
    return python


def test_sft_and_dpo_train_whole_models_and_adapters(python: Path, tmp_path: Path) -> None:
    saved(tmp_path / "model", BLOCK)
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    program = "tests.interop.huggingface.auto_classes.trl_steps"
    done = run_program(
        [python, "-m", program, tmp_path / "model", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=surroundings,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"kind"')]
    assert {(each["kind"], each["lora"]) for each in results} == {(k, lora) for k in ("sft", "dpo") for lora in (0, 1)}
    for each in results:
        assert each["moved"] == each["trained"] > 0, each
        assert len(each["losses"]) == 2
        first = each["loss"] if each["kind"] == "sft" else math.log(2)  # of DPO before its first step
        assert each["losses"][0] == pytest.approx(first, rel=1e-3), each
        assert each["losses"][1] < each["losses"][0], each
    whole = Checkpoint.open(tmp_path / "out" / "sft-False")
    assert whole.model().parameter_count() == Checkpoint.open(tmp_path / "model").model().parameter_count()
    adapter = Checkpoint.open(tmp_path / "out" / "sft-True", base=tmp_path / "model")
    assert adapter.adapter is not None and adapter.model() is not None
