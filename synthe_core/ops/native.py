"""C kernels for CPUs, compiled once on this machine and cached in the user's cache folder.

Plain C files beside the operators are built with the system's compiler for exactly this processor (about a second,
no build tools) and called through ctypes. Threads come from the OpenMP runtime that torch itself has loaded, so there
is one pool of threads and `torch.set_num_threads` counts. Without a compiler, kernels refuse with that reason.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.hardware.probe import Hardware, cache_dir, probe

FLAGS = [
    "-O3",
    "-march=native",
    "-std=c11",
    "-ffp-contract=fast",
    "-shared",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
]
WIDE = ["-mprefer-vector-width=512"]
PARTS = Path(__file__).parent


class Unavailable(Exception):
    """Why native code is not available here, in words."""


def refusal(hardware: Hardware, device: str, source: str) -> str | None:
    """The reason that kernels of `source` (a C file in ops/) cannot run on `device`, or None."""
    if device != "cpu":
        return f"compiled for the CPU, and the tensors are on {device}"
    if hardware.compiler is None:
        return "no C compiler on this machine (install gcc or clang)"
    try:
        library(source)
    except Unavailable as error:
        return str(error)
    return None


@functools.cache
def _build(source: str) -> ctypes.CDLL | Unavailable:
    compiler = probe().compiler
    if compiler is None:
        return Unavailable("no C compiler on this machine (install gcc or clang)")
    path = PARTS / source
    try:
        return _load(_compile(compiler, path))
    except (OSError, subprocess.SubprocessError) as error:
        return Unavailable(f"compiling {source} failed: {error}")


def library(source: str) -> ctypes.CDLL:
    """The shared library built from ops/`source`; raises Unavailable with the reason."""
    built = _build(source)
    if isinstance(built, Unavailable):
        raise built
    return built


def _compile(compiler: str, path: Path) -> Path:
    wide = WIDE if platform.machine() in ("x86_64", "AMD64") else []
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    headers = b"".join(header.read_bytes() for header in sorted(PARTS.rglob("*.h")))
    identity = "\n".join([version, _processor(), *FLAGS, *wide]).encode()
    digest = hashlib.sha256(identity + headers + path.read_bytes()).hexdigest()[:16]
    target = cache_dir() / "native" / f"{path.stem}-{digest}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / "kernel.so"
        # libgomp.so.1 resolves to the copy that torch has loaded: one pool of threads for both.
        command = [compiler, *FLAGS, *wide, "-fopenmp", str(path), "-o", str(built), "-lm"]
        attempts = [command, [part for part in command if part != "-fopenmp"], [c for c in command if c not in wide]]
        for attempt in attempts:
            done = subprocess.run(attempt, capture_output=True, text=True)
            if done.returncode == 0:
                os.replace(built, target)
                return target
        raise OSError((done.stderr.strip().splitlines() or ["the compiler gave no reason"])[0])


def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor() + platform.machine()


def function(source: str, name: str, dtype: torch.dtype) -> Any:
    """The C function `name` of ops/`source`, compiled for float32 or float64."""
    return getattr(library(source), f"{name}_{'double' if dtype == torch.float64 else 'float'}")


def call(source: str, name: str, like: Tensor, *tensors: Tensor | None) -> None:
    """Calls that function, in the dtype of `like`, with the addresses of `tensors` and then the sizes of `like`."""
    function(source, name, like.dtype)(*map(pointer, tensors), *map(ctypes.c_int64, like.shape))


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """The address of a contiguous tensor's first element; NULL for None."""
    if tensor is None:
        return ctypes.c_void_p(None)
    assert tensor.is_contiguous(), "native kernels read contiguous memory"
    return ctypes.c_void_p(tensor.data_ptr())
