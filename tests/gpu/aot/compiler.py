"""Compiles the Triton kernels that a call would launch for a GPU that is not here; nothing runs.

Importing this module puts a driver in Triton's place that names the architecture of SYNTHE_AOT (90 by default), so it
belongs into a process of its own, before any kernel is imported.
"""

from __future__ import annotations

import os
import re
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.runtime.autotuner as autotuner
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from tests.processes import run_program


class Architecture(types.SimpleNamespace):
    """name of a card, bytes of shared memory that a block may have, and multiprocessors."""


ARCHITECTURES = {
    89: Architecture(name="NVIDIA GeForce RTX 4090", shared=101376, processors=128),
    90: Architecture(name="NVIDIA H200", shared=232448, processors=132),
    100: Architecture(name="NVIDIA B200", shared=232448, processors=148),
    120: Architecture(name="NVIDIA GeForce RTX 5090", shared=101376, processors=170),
}
CAPABILITY = int(os.environ.get("SYNTHE_AOT", "90"))
CARD = ARCHITECTURES[CAPABILITY]


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel needs: registers of a thread and bytes of its stack, to which registers are spilled; bytes
    of shared memory of a block, and its warps."""

    kernel: str
    registers: int
    spills: int
    shared: int
    warps: int


class PretendedDriver:
    """What Triton asks of a driver while it compiles."""

    utils = types.SimpleNamespace(
        get_device_properties=lambda index=0: {
            "max_shared_mem": CARD.shared,
            "multiprocessor_count": CARD.processors,
            "warpSize": 32,
            "max_num_regs": 65536,
        }
    )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        return

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(CAPABILITY, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        return lambda fn, quantiles=None: [0.0, 0.0, 0.0]


def install() -> dict[str, Any]:
    """Puts the pretended driver in place. Returns the compiled kernels, name by variant, which calls then fill."""
    compiled: dict[str, Any] = {}
    driver.set_active(PretendedDriver())
    properties = types.SimpleNamespace(
        name=CARD.name,
        multi_processor_count=CARD.processors,
        shared_memory_per_block_optin=CARD.shared,
        total_memory=32 << 30,
        major=CAPABILITY // 10,
        minor=CAPABILITY % 10,
    )
    for name, value in {
        "get_device_capability": divmod(CAPABILITY, 10),
        "get_device_name": CARD.name,
        "get_device_properties": properties,
        "device_count": 1,
        "current_device": 0,
    }.items():
        setattr(torch.cuda, name, lambda *args, value=value: value)
    run = JITFunction.run

    def only_compile(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel is not None:
            compiled.setdefault(f"{self.__name__} {kernel.hash}", kernel)
        return kernel

    JITFunction.run = only_compile
    autotuner.Autotuner._bench = lambda self, *args, config, **meta: [0.0, 0.0, 0.0]
    return compiled


TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def usage(name: str, kernel: Any) -> Usage:
    """The resources of a compiled kernel, as its machine code states them."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        dumped = _output(TOOLS / "cuobjdump", "--dump-resource-usage", binary)
    match = re.search(r"REG:(\d+) STACK:(\d+)", dumped)
    assert match is not None, dumped
    return Usage(name, int(match[1]), int(match[2]), kernel.metadata.shared, kernel.metadata.num_warps)


def _output(*command: Any) -> str:
    return run_program(command, capture_output=True, text=True, check=True).stdout
