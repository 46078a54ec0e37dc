"""What is read off a machine, from files made up for the purpose, and the choices made from it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.hardware.placement import choose_device, choose_precision
from synthe_core.hardware.probe import (
    Gpu,
    Hardware,
    available_memory,
    cache_dir,
    container_limits,
    probe,
    processor_caches,
)
from synthe_core.hardware.rates import measure_copy, measure_matmul


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_the_probe_is_of_this_machine() -> None:
    hardware = probe()
    assert hardware is probe()
    assert 0 < hardware.available <= hardware.memory
    assert hardware.cores >= 1
    assert hardware.libraries["torch"] == torch.__version__
    assert hardware.device == ("cuda" if torch.cuda.is_available() else hardware.device)
    assert (hardware.gpu is None) == (hardware.gpus == ())
    assert 0 < available_memory() <= hardware.memory


@pytest.mark.parametrize(
    ("files", "cores", "memory", "used"),
    [
        ({}, math.inf, math.inf, 0),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, math.inf, math.inf, 0),
        (
            {
                "proc/self/cgroup": "0::/box/inner",
                "sys/fs/cgroup/box/cpu.max": "150000 100000",
                "sys/fs/cgroup/box/memory.max": "4096",
                "sys/fs/cgroup/box/memory.current": "1024",
                "sys/fs/cgroup/box/inner/memory.max": "max",
                "sys/fs/cgroup/box/inner/cpu.max": "800000 100000",
            },
            1.5,
            4096,
            1024,
        ),
        (
            {  # version 1, whose own path is not mounted in the container
                "proc/self/cgroup": "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "8192",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "100",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2.0,
            8192,
            100,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/\n3:cpu:/",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            math.inf,
            math.inf,
            0,
        ),
    ],
    ids=["no groups", "no limit", "version 2", "version 1", "version 1 without limit"],
)
def test_a_container_limits(tmp_path: Path, files: dict[str, str], cores: float, memory: float, used: int) -> None:
    assert container_limits(write(tmp_path, files)) == (cores, memory, used)


def test_only_data_caches_are_listed(tmp_path: Path) -> None:
    index = "sys/devices/system/cpu/cpu0/cache/index"
    facts = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "1G")]
    for i, (level, kind, size) in enumerate(facts):
        write(tmp_path, {f"{index}{i}/level": level, f"{index}{i}/type": kind, f"{index}{i}/size": size})
    assert processor_caches(tmp_path) == {"L1d": 48 << 10, "L2": 2 << 20, "L3": 1 << 30}
    assert processor_caches(tmp_path / "elsewhere") == {}


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("SYNTHE_CACHE", raising=False)
    assert cache_dir() == Path("/x/synthe")
    monkeypatch.setenv("SYNTHE_CACHE", "/y")
    assert cache_dir() == Path("/y")


CPU = Hardware("cpu", "a processor", 2, 1 << 30, features=frozenset({"avx2"}))
AMX = Hardware("cpu", "a processor", 2, 1 << 30, features=frozenset({"avx512f", "amx_bf16"}))
A100 = Gpu("A100", 40 << 30, (8, 0))
CUDA = Hardware("cuda", "a processor", 8, 1 << 36, gpu=A100, gpus=(A100,))


def test_the_device_follows_the_machine() -> None:
    assert choose_device("auto", CPU).value == "cpu"
    assert choose_device("auto", CUDA) == ("cuda", "A100 is faster than the processor")
    assert choose_device("cpu", CUDA).value == "cpu"
    with pytest.raises(InputError, match="no cuda device"):
        choose_device("cuda", CPU)
    with pytest.raises(InputError, match="unknown device 'cudda'"):
        choose_device("cudda", CUDA)


def test_the_precision_follows_what_was_measured() -> None:
    def rates(bfloat16: float) -> dict[torch.dtype, float]:
        return {torch.float32: 100e9, torch.bfloat16: bfloat16}

    def never(device: str, dtype: torch.dtype) -> float:
        raise AssertionError("measured for nothing")

    fast, slow = rates(300e9), rates(110e9)
    assert choose_precision("auto", "cpu", AMX, lambda _, dtype: fast[dtype]) == (
        "bfloat16",
        "matrix products run at 300 GFLOP/s in bfloat16 and 100 in float32",
    )
    assert choose_precision("auto", "cpu", AMX, lambda _, dtype: slow[dtype]).value == "float32"
    assert choose_precision("auto", "cuda", CUDA, lambda _, dtype: fast[dtype]).value == "bfloat16"
    assert choose_precision("auto", "cpu", CPU, never) == ("float32", "the processor has no bfloat16 instructions")
    assert choose_precision("bfloat16", "cpu", CPU, never).value == "bfloat16"


def test_rates_are_measured() -> None:
    """Not how fast, which no test may say, but that the figures follow the work."""
    for dtype in (torch.float32, torch.bfloat16):
        assert 0 < measure_matmul("cpu", dtype, 64) < math.inf
    assert 0 < measure_copy("cpu", 1 << 16) < math.inf
