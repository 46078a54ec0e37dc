"""The guide is run: its commands (shortened) and its Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from synthe_core.layers import LAYERS
from synthe_core.recipe.schema import Recipe
from tests.docs.markdown import blocks, files, relative
from tests.docs.running import SYNTHE, run, run_page, shortened
from tests.paths import ROOT

GUIDE = ROOT / "docs" / "guide"
PAGES = [path for path in files() if ROOT / "docs" in path.parents]
READY = (
    "synthe train recipes/tiny.yaml",
    "synthe train recipes/tiny.yaml --set train.lr=1e-3 --out runs/mine",
)
"""What a reader of a later page has done already on the first ones."""


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `runs/tiny` and `runs/mine`, and the cache that they filled."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for command in READY:
        run(shortened(command), folder, folder / "cache", in_process=True)
    return folder


@pytest.mark.skipif(not SYNTHE.exists(), reason="the synthe command is not installed beside this Python")
@pytest.mark.parametrize("page", [pytest.param(p, id=relative(p)) for p in PAGES if blocks(p, "console")])
def test_commands_run_in_order(page: Path, ready: Path, tmp_path: Path) -> None:
    if page.name not in ("index.md", "train.md"):  # these make the runs that the others start from
        shutil.copytree(ready / "runs", tmp_path / "runs")
    elif page.name == "train.md":
        shutil.copytree(ready / "runs" / "tiny", tmp_path / "runs" / "tiny")
    assert run_page(page, tmp_path, ready / "cache", in_process=True) > 0


@pytest.mark.parametrize("page", [pytest.param(p, id=relative(p)) for p in PAGES if blocks(p, "python")])
def test_python_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page run one after the other, in one namespace."""
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block.text, f"{relative(page)}:{block.line}", "exec"), names)


@pytest.mark.parametrize("page", [pytest.param(p, id=relative(p)) for p in PAGES if blocks(p, "yaml")])
def test_recipes_are_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        (tmp_path / "recipe.yaml").write_text(block.text)
        Recipe.load(tmp_path / "recipe.yaml")


def test_the_guide_names_every_learner() -> None:
    text = (GUIDE / "recipes.md").read_text(encoding="utf-8")
    assert not [name for name in LAYERS if f"`{name}`" not in text]
