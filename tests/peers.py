"""Somebody else's code to compare with. Where it is not installed, the tests that ask for it are skipped."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _fla(path: str) -> Path:
    """A file of fla-core: its package cannot be imported without Triton, its plain files can."""
    try:
        file = Path(str(importlib.metadata.distribution("fla-core").locate_file(f"fla/{path}")))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fla-core is not installed")
    if not file.is_file():
        pytest.skip(f"this fla-core has no {path}")
    return file


def fla_naive(path: str) -> ModuleType:
    """A module of fla's naive recurrences in pure torch, such as `ops/kda/naive.py`."""
    file = _fla(path)
    spec = importlib.util.spec_from_file_location(f"fla_{file.parent.name}_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fla_parameters(path: str, function: str) -> list[str]:
    """The parameter names of a Triton-backed function of fla, read from its source: a kernel must call it by them."""
    for node in ast.walk(ast.parse(_fla(path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    raise AssertionError(f"fla/{path} has no function {function}")
