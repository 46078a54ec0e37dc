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


def choose_device(device: str, hardware: Hardware) -> Chosen:
    """The device that `device` names, "auto" or one of DEVICES; raises InputError for one that is not there."""
    if device not in ("auto", *DEVICES):
        raise unknown("device", device, ("auto", *DEVICES))
    if device == "cpu":
        return Chosen("cpu", "asked for")
    if device == "auto":
        if hardware.gpu is None:
            return Chosen("cpu", "torch finds no CUDA or MPS device")
        return Chosen(hardware.device, f"{hardware.gpu.name} is faster than the processor")
    if device != hardware.device:
        raise InputError(
            f"no {device} device: torch finds none on this machine", f"this machine has: {hardware.device}"
        )
    return Chosen(device, "asked for")


def choose_precision(precision: str, device: str, hardware: Hardware, rates: Rates = measure_matmul) -> Chosen:
    """The precision of matrix products, "float32" or "bfloat16"; "auto" measures both where both could win."""
    if precision != "auto":
        return Chosen(precision, "asked for")
    if device == "cpu" and hardware.features and not hardware.features & NARROW:
        return Chosen("float32", "the processor has no bfloat16 instructions")
    wide, narrow = rates(device, torch.float32), rates(device, torch.bfloat16)
    measured = f"matrix products run at {narrow / 1e9:,.0f} GFLOP/s in bfloat16 and {wide / 1e9:,.0f} in float32"
    return Chosen("bfloat16" if narrow >= WORTHWHILE * wide else "float32", measured)
