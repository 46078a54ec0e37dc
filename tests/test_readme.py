"""The README is run: its commands (shortened), its Python, and the install lines that CI must share with it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.processes import run_program

README = (ROOT / "README.md").read_text(encoding="utf-8")
SYNTHE = Path(sys.executable).parent / "synthe"
SHORTER = " --set " + " --set ".join(
    [
        "train.budget=3steps",
        "train.micro_batch=8",
        "train.validation_tokens=2048",
        "runtime.precision=float32",
        "data.limit=300KB",
        "data.tokenizer.vocab=300",
    ]
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


def test_ci_installs_as_the_readme_says():
    ci = (ROOT / ".ci" / "run").read_text()
    lines = [line.split("&&")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line.replace("pip install", "pip install -q") in ci


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_blocks_are_recipes(text, tmp_path):
    from synthe_core.recipe.schema import Recipe

    (tmp_path / "r.yaml").write_text(text)
    assert Recipe.load(tmp_path / "r.yaml").model.blocks == 8


@pytest.mark.skipif(not SYNTHE.exists(), reason="the synthe command is not installed beside this Python")
def test_commands_run_in_order(tmp_path):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    environment = os.environ | {
        "PATH": f"{SYNTHE.parent}{os.pathsep}{os.environ['PATH']}",
        "SYNTHE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    commands = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(commands) >= 6
    for command in commands:
        shorter = re.sub(r"synthe train \S+\.yaml", lambda found: found[0] + SHORTER, command)
        shorter = re.sub(r"synthe bench (mqar|parity|zoology)", lambda found: found[0] + " --steps 2", shorter)
        arguments = ["bash", "-o", "pipefail", "-c", shorter]
        done = run_program(arguments, timeout=600, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{shorter}\n{done.stderr}"
        assert done.stdout.strip(), shorter
        assert "Traceback" not in done.stderr
