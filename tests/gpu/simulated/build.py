"""The device guard as a shared library, compiled once for a torch and cached. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.processes import run_program

SOURCE = Path(__file__).with_name("guard.cpp")
LIMIT = 300.0  # seconds that the compiler may take


class Unavailable(Exception):
    """No device can be simulated here; the message says why."""


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def guard_library() -> Path:
    """The compiled guard. Raises Unavailable."""
    installed = version("torch")
    if "+cpu" not in installed and not (torch_folder() / "lib/libtorch_cpu.so").exists():
        raise Unavailable("torch has no shared libraries of Linux")
    if (torch_folder() / "lib/libtorch_cuda.so").exists():
        raise Unavailable("torch has CUDA of its own: the device is simulated with the CPU's torch only")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise Unavailable("no C++ compiler on this machine")
    digest = hashlib.sha256(f"{installed} {SOURCE.read_text()}".encode()).hexdigest()[:16]
    library = _folder() / f"simulated-cuda-{digest}.so"
    if not library.exists():
        _compile(compiler, library)
    return library


def _folder() -> Path:
    named = os.environ.get("SYNTHE_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synthe"


def _compile(compiler: str, library: Path) -> None:
    """Compiles beside the library and renames, so that two processes may do it at once."""
    library.parent.mkdir(parents=True, exist_ok=True)
    torch = torch_folder()
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, "-shared", "-fPIC", "-std=c++20", f"-I{torch}/include", str(SOURCE), "-o", str(made)]
        done = run_program(
            [*command, f"-L{torch}/lib", "-lc10", "-ltorch_cpu"], capture_output=True, text=True, timeout=LIMIT
        )
        if done.returncode:
            line = next((each for each in done.stderr.splitlines() if "error" in each), "the compiler failed")
            raise Unavailable(f"the device guard does not compile with this torch: {line[-200:]}")
        made.replace(library)
