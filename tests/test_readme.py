"""The README is run: its commands (shortened), its Python, and the install lines that CI must share with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthe_core.recipe.schema import Recipe
from tests.docs.command_lines import lines
from tests.docs.markdown import blocks
from tests.docs.running import SYNTHE, run_page
from tests.paths import ROOT

README = ROOT / "README.md"


def test_it_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_ci_installs_as_the_readme_says() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    commands = [line.split("&&")[0].strip() for block in blocks(README, "sh") for line in lines(block)]
    assert len(commands) == 2
    for command in commands:
        assert command.replace("pip install", "pip install -q") in ci


@pytest.mark.parametrize("code", [block.text for block in blocks(README, "python")])
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("text", [block.text for block in blocks(README, "yaml")])
def test_yaml_blocks_are_recipes(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert Recipe.load(tmp_path / "r.yaml").model.blocks == 8


@pytest.mark.skipif(not SYNTHE.exists(), reason="the synthe command is not installed beside this Python")
def test_commands_run_in_order(tmp_path: Path) -> None:
    assert run_page(README, tmp_path, tmp_path / "cache") >= 6
