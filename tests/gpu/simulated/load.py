"""Loads the device guard, then torch. Import it before anything that imports torch."""

from __future__ import annotations

import ctypes
import os
import sys

from tests.gpu.simulated.build import guard_library, torch_folder

assert "torch" not in sys.modules, "the device is simulated in a process of its own: import it before torch"
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
    ctypes.CDLL(str(torch_folder() / "lib" / _name), mode=ctypes.RTLD_GLOBAL)
ctypes.CDLL(str(guard_library()), mode=ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
import torch.cuda.amp.common  # noqa: E402

torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
torch.cuda._lazy_init = lambda: None
torch.cuda._exchange_device = lambda device: 0
torch.cuda._maybe_exchange_device = lambda device: 0
torch.cuda.get_device_capability = lambda *args: (9, 0)
torch.cuda.synchronize = lambda *args: None
torch.cuda.empty_cache = lambda: None
torch.inference_mode = lambda *args: torch.no_grad()  # type: ignore[misc, assignment]  # wrapped tensors have views with gradients' bookkeeping only
