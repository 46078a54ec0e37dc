"""The shape of the project: imports point downward only, files stay short, and help needs no torch."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.processes import run_program

FILES = sorted(path for package in ("synthe_core", "synthe_cli") for path in (ROOT / package).rglob("*.py"))
LONGEST = 400
LONGEST_FUNCTION = 60
LOOSE = 6  # files of synthe_core itself

LAYERS = [
    "__init__ errors registry events budget units state charts",
    "storage storage.atomic storage.path_format storage.json_reader storage.yaml_reader "
    "storage.tensor_file storage.named_path",
    "agents.sandbox",
    "quantization",
    "hardware hardware.probe hardware.rates hardware.placement hardware.mkl hardware.execution hardware.sequence",
    "ops",
    "layers",
    "model",
    "adapters",
    "data tasks",
    "recipe hardware.kernel_survey hardware.kernel_tuning hardware.recipe_context",
    "storage.manifest storage.adapter_files storage.checkpoint storage.run_folder",
    "offload",
    "inference",
    "interop",
    "evaluation.accumulators evaluation.bits_per_byte evaluation.classification profiling.device_memory",
    "training",
    "introspection profiling evaluation packing merging benchmarks retrieval",
    "sweep",
    "scaling benchmarks.language",
    "swarm",
    "agents",
    "serving",
    "chat benchmarks.decoding evaluation.chat",
    "synthe_cli",
]
"""Every module from the bottom up. A module has the rank of the longest name here that it begins with; neighbours on a
line may import each other, as long as they make no circle."""
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}


def rank(module: str) -> int:
    """The height of `synthe_core.layers.delta`: that of `layers`. KeyError for a module that nobody has ranked."""
    name = module.removeprefix("synthe_core").removeprefix(".") or "__init__"
    while name not in RANKS:
        if "." not in name:
            raise KeyError(f"{module} has no rank: name it in LAYERS")
        name = name.rpartition(".")[0]
    return RANKS[name]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str) -> list[tuple[int, str]]:
    """Every import of our packages in a module's text, wherever it stands: (line, module)."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"line {node.lineno}: imports are absolute"
            names = [
                each if (each := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            ]
        modules += [(node.lineno, name) for name in names if name.partition(".")[0] in ("synthe_core", "synthe_cli")]
    return modules


def upward(path: Path, source: str) -> list[str]:
    height = rank(module_of(path))
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}, which is above it"
        for line, name in imports(source)
        if rank(name) > height
    ]


MODULES = {module_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    assert not upward(path, path.read_text(encoding="utf-8"))


def test_an_upward_import_is_reported() -> None:
    learner = ROOT / "synthe_core" / "layers" / "delta.py"
    assert upward(learner, "def f():\n    from synthe_core.recipe.schema import Recipe\n")
    assert upward(learner, "import synthe_cli.console")
    assert upward(ROOT / "synthe_core" / "storage" / "checkpoint" / "read.py", "from synthe_core import training")
    assert upward(ROOT / "synthe_core" / "storage" / "atomic.py", "from synthe_core.storage import manifest")
    assert not upward(learner, "from synthe_core.ops.delta_rule import delta_rule\nfrom synthe_core import state")


def test_a_module_without_a_rank_is_an_error() -> None:
    with pytest.raises(KeyError, match="has no rank"):
        rank("synthe_core.somewhere.new")


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other around, in whatever place the imports stand."""
    order = TopologicalSorter(graph)
    try:
        order.prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module_of(path): {name for _, name in imports(path.read_text(encoding="utf-8")) if name != module_of(path)}
        for path in FILES
    }
    assert circles({"a": {"b"}, "b": {"a"}})
    assert not circles(graph)


def functions(path: Path) -> list[tuple[int, str]]:
    """Every function of a file: (lines, name). A command's signature is its options, and does not count."""
    return [
        (node.end_lineno - (node.body[0].lineno if path.parent.name == "commands" else node.lineno) + 1, node.name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_long(path: Path) -> None:
    assert not [(lines, name) for lines, name in functions(path) if lines > LONGEST_FUNCTION]


def test_few_files_stand_loose() -> None:
    assert len(list((ROOT / "synthe_core").glob("[a-z]*.py"))) <= LOOSE


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
    done = run_program([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    heavy = ast.literal_eval(done.stdout.splitlines()[-1].removeprefix("heavy: "))
    assert "torch" not in heavy
    assert len(arguments) == 2 or heavy == []
