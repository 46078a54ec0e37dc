"""`learners`, with our Triton kernels: each of their launches counts, and computes nothing.

    python -m tests.gpu.simulated.with_triton kalman mamba

What the kernels would write stays as it was allocated, so numbers mean nothing, and no launch depends on them. fla's
kernels refuse: what is counted is what float32 launches.
"""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import Any

from tests.gpu.simulated import machine  # isort: skip  (before torch)

from triton.runtime.jit import JITFunction

from synthe_core.hardware import probe as probing
from tests.gpu.simulated.counts import current
from tests.gpu.simulated.learners import main


def counted(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    if (counts := current()) is not None:
        counts.launch(self.__name__, 1)


JITFunction.run = counted
libraries = {name: number for name, number in machine.HARDWARE.libraries.items() if name != "fla-core"}
probing._probed[0] = dataclasses.replace(machine.HARDWARE, libraries=libraries | {"triton": version("triton")})

if __name__ == "__main__":
    main()
