"""What this machine is: probed once and passed around as a value, so that choices can be tested with a made-up one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

LIBRARIES = ("torch", "triton", "fla-core", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


@dataclass(frozen=True)
class Gpu:
    """An accelerator; `capability` is CUDA's (major, minor), (0, 0) elsewhere."""

    name: str
    memory: int
    capability: tuple[int, int] = (0, 0)
    driver: str = ""


@dataclass(frozen=True)
class Hardware:
    """A machine, as far as this process may use it. Memory and caches in bytes.

    `device` is the torch device that work goes to unless a recipe says otherwise. `cores` and `memory` honour a
    container's limits. `features` are the processor's usable instruction sets in lower case, such as "avx512f" and
    "amx_bf16". `gpu` is the accelerator that `device` names, `gpus` all that were found. `available` is the memory
    that was free when the machine was probed. `caches` maps "L1d", "L2", "L3" to the size that one core sees.
    """

    device: str
    processor: str
    cores: int
    memory: int
    features: frozenset[str] = frozenset()
    gpu: Gpu | None = None
    compiler: str | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
    available: int = 0
    caches: dict[str, int] = field(default_factory=dict)
    system: str = ""


class Limits(NamedTuple):
    """What a container grants: cores (fractions are possible) and bytes of memory, and how many bytes it uses."""

    cores: float = math.inf
    memory: float = math.inf
    used: int = 0


def cache_dir() -> Path:
    """Where synthe keeps what it can make again: $SYNTHE_CACHE, else $XDG_CACHE_HOME/synthe, else ~/.cache/synthe."""
    if named := os.environ.get("SYNTHE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synthe"


_probed: list[Hardware] = []


def probe() -> Hardware:
    """This machine, looked at once a process. Cheap: it reads facts and measures nothing (see `hardware_rates`)."""
    if not _probed:  # no functools.cache, into which torch.compile would trace
        _probed.append(_machine())
    return _probed[0]


def _machine() -> Hardware:
    gpus = _gpus()
    limits = container_limits()
    processor, features = _processor()
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Hardware(
        device="cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu",
        processor=processor,
        cores=max(1, min(affinity, math.ceil(min(limits.cores, affinity)))),
        memory=int(min(psutil.virtual_memory().total, limits.memory)),
        features=features,
        gpu=gpus[0] if gpus else None,
        compiler=_compiler(),
        libraries={name: installed for name in LIBRARIES if (installed := _version(name))},
        gpus=gpus,
        available=available_memory(),
        caches=processor_caches(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
    )


def fingerprint(hardware: Hardware, threads: int | None = None) -> str:
    """A short name for what makes the speed of work: processor, cores, instructions, GPU, compiler, libraries, and the
    CPU threads (torch's setting by default)."""
    facts = [hardware.processor, hardware.cores, sorted(hardware.features), hardware.compiler, hardware.device]
    facts += [[gpu.name, gpu.memory, gpu.capability] for gpu in hardware.gpus or filter(None, [hardware.gpu])]
    facts += [sorted(hardware.libraries.items()), threads or torch.get_num_threads()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def available_memory() -> int:
    """Bytes of main memory that could be taken now, within the container's limit."""
    limits = container_limits()
    return max(0, int(min(psutil.virtual_memory().available, limits.memory - limits.used)))


def container_limits(root: Path = Path("/")) -> Limits:
    """The tightest limits among this process's control groups, version 2 or 1, as the files under `root` state them."""
    cores, memory, used = math.inf, math.inf, 0
    for folder in _groups(root):
        quota = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us"),
            _read(folder / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]):
            cores = min(cores, int(quota[0]) / int(quota[1]))
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if limit.isdigit() and int(limit) < min(memory, 1 << 60):  # version 1 writes "unlimited" as about 2^63
            memory = int(limit)
            usage = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
            used = int(usage) if usage.isdigit() else 0
    return Limits(cores, memory, used)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the control groups that this process is in, and of the groups around them."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mounts = [name for name in controllers.split(",") if name in ("cpu", "memory")]
        for mount in mounts or ([] if controllers else ["."]):
            top = root / "sys/fs/cgroup" / mount
            inner = top / path.strip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder == top or top in folder.parents)


def processor_caches(root: Path = Path("/")) -> dict[str, int]:
    """Bytes of each data cache that the first core sees; empty where the system does not report them."""
    sizes = {}
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size, kind = re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size")), _read(index / "type")
        if size and kind in ("Data", "Unified"):
            bytes_ = int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]]
            sizes[f"L{_read(index / 'level')}{'d' if kind == 'Data' else ''}"] = bytes_
    return sizes


def _gpus() -> tuple[Gpu, ...]:
    if torch.cuda.is_available():
        facts = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        driver = re.search(r"Kernel Module\D+([\d.]+)", _read(Path("/proc/driver/nvidia/version")))
        return tuple(Gpu(f.name, f.total_memory, (f.major, f.minor), driver[1] if driver else "") for f in facts)
    if torch.backends.mps.is_available():
        return (Gpu("Apple GPU", psutil.virtual_memory().total),)
    return ()


def _processor() -> tuple[str, frozenset[str]]:
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((facts.get("flags") or facts.get("Features") or "").lower().split())
    if not torch.cpu._is_amx_tile_supported():  # the kernel may withhold tiles from a process though the flag is there
        flags = {flag for flag in flags if not flag.startswith("amx")}
    return facts.get("model name") or platform.processor() or platform.machine(), frozenset(flags)


def _compiler() -> str | None:
    named = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((path for name in named if name and (path := shutil.which(name))), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    """The text of a small system file, "" where there is none."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
