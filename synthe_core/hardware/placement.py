"""Where work runs and in which precision, chosen from what the machine is and from what it was measured to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from synthe_core.errors import InputError, unknown
from synthe_core.hardware.probe import Hardware
from synthe_core.hardware.rates import measure_matmul

DEVICES = ("cpu", "cuda", "mps")
WORTHWHILE = 1.2  # bfloat16 must be this many times faster: its casts cost time too
NARROW = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

Rates = Callable[[str, torch.dtype], float]


class Chosen(NamedTuple):
    """A choice and its reason in words."""

    value: str
    reason: str


def choose_device(asked: str, hardware: Hardware) -> Chosen:
    """The device of `asked`, "auto" or one of DEVICES; raises InputError for one that is not there."""
    if asked not in ("auto", *DEVICES):
        raise unknown("device", asked, ("auto", *DEVICES))
    if asked == "cpu":
        return Chosen("cpu", "asked for")
    if asked == "auto":
        if hardware.gpu is None:
            return Chosen("cpu", "torch finds no CUDA or MPS device")
        return Chosen(hardware.device, f"{hardware.gpu.name} is faster than the processor")
    if asked != hardware.device:
        raise InputError(f"no {asked} device: torch finds none on this machine", f"this machine has: {hardware.device}")
    return Chosen(asked, "asked for")


def choose_precision(asked: str, device: str, hardware: Hardware, rates: Rates = measure_matmul) -> Chosen:
    """ "float32" or "bfloat16" for matrix products; `asked` may be "auto", which measures both where both could win."""
    if asked != "auto":
        return Chosen(asked, "asked for")
    if device == "cpu" and hardware.features and not hardware.features & NARROW:
        return Chosen("float32", "the processor has no bfloat16 instructions")
    wide, narrow = rates(device, torch.float32), rates(device, torch.bfloat16)
    measured = f"matrix products run at {narrow / 1e9:,.0f} GFLOP/s in bfloat16 and {wide / 1e9:,.0f} in float32"
    return Chosen("bfloat16" if narrow >= WORTHWHILE * wide else "float32", measured)
