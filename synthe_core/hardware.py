"""What this machine is: probed once, passed around as a value, so that every choice can be tested with a made-up one."""

from __future__ import annotations

import functools
import os
import platform
import shutil
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True)
class Gpu:
    """An accelerator; `capability` is CUDA's (major, minor), (0, 0) elsewhere."""

    name: str
    memory: int
    capability: tuple[int, int] = (0, 0)
    driver: str = ""


@dataclass(frozen=True)
class Hardware:
    """A machine. Memory in bytes; `features` are lower-case instruction-set names such as "avx512f" and "amx_bf16"."""

    device: str
    processor: str
    cores: int
    memory: int
    features: frozenset[str] = frozenset()
    gpu: Gpu | None = None
    compiler: str | None = None
    libraries: dict[str, str] = field(default_factory=dict)


def cache_dir() -> Path:
    """Where synthe keeps what it can make again: $SYNTHE_CACHE, else $XDG_CACHE_HOME/synthe, else ~/.cache/synthe."""
    if named := os.environ.get("SYNTHE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synthe"


@functools.cache
def probe() -> Hardware:
    """This machine, looked at once a process."""
    gpu = _gpu()
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    processor, features = _processor()
    return Hardware(
        device=device,
        processor=processor,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        features=features,
        gpu=gpu,
        compiler=_compiler(),
        libraries={name: found for name in ("torch", "triton", "fla-core", "transformers") if (found := _version(name))},
    )


def _gpu() -> Gpu | None:
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        return Gpu(facts.name, facts.total_memory, (facts.major, facts.minor))
    if torch.backends.mps.is_available():
        return Gpu("Apple GPU", psutil.virtual_memory().total)
    return None


def _processor() -> tuple[str, frozenset[str]]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine(), frozenset()
    facts = dict(line.split(":", 1) for line in info.read_text(errors="replace").splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = facts.get("flags") or facts.get("Features") or ""
    return facts.get("model name", platform.machine()), frozenset(flags.lower().split())


def _compiler() -> str | None:
    named = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in named if name and (found := shutil.which(name))), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
