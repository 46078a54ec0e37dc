"""The shape of the project: imports point downward only, files stay short, and help needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("synthe_core", "synthe_cli") for path in (ROOT / package).rglob("*.py"))
LONGEST = 400

LAYERS = [
    ["__init__", "errors", "registry", "events", "budget", "yaml_text", "atomic", "tensor_file", "quantized"],
    ["hardware", "hardware_rates", "state", "trace"],
    ["ops"],
    ["learner"],
    ["layers"],
    ["model"],
    ["adapters"],
    ["data", "tasks"],
    ["recipe"],
    ["manifest", "adapter_files", "source", "checkpoint"],
]
"""synthe_core from the bottom up; whatever is not named is a verb above them all, and synthe_cli is above that.

A verb may import another verb, and neighbours on a line may import each other.
"""
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
VERB, CLI = len(LAYERS), len(LAYERS) + 1


def rank(module: str) -> int:
    """The height of `synthe_core.layers.delta`: that of `layers`."""
    package, _, rest = module.partition(".")
    if package == "synthe_cli":
        return CLI
    return RANKS.get(rest.partition(".")[0] or "__init__", VERB)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str) -> list[tuple[int, str]]:
    """Every import of our packages in a module's text, wherever it stands: (line, module)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in ("synthe_core", "synthe_cli"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
        found += [(node.lineno, name) for name in names if name.partition(".")[0] in ("synthe_core", "synthe_cli")]
    return found


def upward(path: Path, source: str) -> list[str]:
    height = rank(module_of(path))
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}, which is above it"
        for line, name in imports(source)
        if rank(name) > height
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    assert not upward(path, path.read_text(encoding="utf-8"))


def test_an_upward_import_is_found() -> None:
    learner = ROOT / "synthe_core" / "layers" / "delta.py"
    assert upward(learner, "def f():\n    from synthe_core.recipe import Recipe\n")
    assert upward(learner, "import synthe_cli.console")
    assert upward(ROOT / "synthe_core" / "checkpoint.py", "from synthe_core import training")
    assert not upward(learner, "from synthe_core.ops.delta_rule import delta_rule\nfrom synthe_core import state")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["hardware", "--help"]])
def test_help_comes_without_torch(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from synthe_cli.app import app\n"
        "assert not any(m.startswith('synthe_cli.commands.') for m in sys.modules)\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('heavy:', [m for m in ('torch', 'numpy', 'pydantic', 'rich', 'datasets') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    heavy = ast.literal_eval(done.stdout.splitlines()[-1].removeprefix("heavy: "))
    assert "torch" not in heavy
    assert len(arguments) == 2 or heavy == []
