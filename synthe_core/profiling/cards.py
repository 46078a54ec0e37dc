"""Graphics cards and how much of their memory is a model's to take."""

from __future__ import annotations

import re

from synthe_core.errors import InputError, closest
from synthe_core.hardware.probe import Hardware

CARDS = {
    "RTX 4060 8GB": 8188,
    "RTX 3060 12GB": 12288,
    "RTX 4070 12GB": 12282,
    "T4 16GB": 15360,
    "RTX 4080 16GB": 16376,
    "L4 24GB": 23034,
    "RTX 4090 24GB": 24564,
    "RTX 5090 32GB": 32607,
    "V100 32GB": 32768,
    "A100 40GB": 40960,
    "L40S 48GB": 46068,
    "H100 80GB": 81559,
    "A100 80GB": 81920,
    "H200 141GB": 143771,
}
"""MiB, as their drivers report them."""
CONTEXT = 600 << 20  # what CUDA, its libraries and their workspaces take before the first tensor
SPARE = 0.05  # of the rest: what the allocator cannot use of its blocks
UNITS = {"": 30, "g": 30, "m": 20, "k": 10}


def card_memory(text: str) -> int:
    """Bytes of the card that `text` names: `8GB`, `16GiB`, `8192MiB`, `H200`, `rtx 4090`. Cards are sold by GiB."""
    asked = text.strip()
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([gmk]?)(?:i?b)?", asked, flags=re.I):
        size = int(float(found[1]) * (1 << UNITS[found[2].lower()]))
        if size > 0:
            return size
    names = [name for name in CARDS if asked[:1].isalpha() and asked.lower() in name.lower()]
    if names:
        return min(CARDS[name] for name in names) << 20
    near = closest(asked, CARDS)
    hint = f"did you mean '{near}'?" if near else f"a size such as 8GB, or one of {', '.join(CARDS)}"
    raise InputError(f"--gpu {text}: no such card", hint)


def usable(memory: int) -> int:
    """Bytes of a card's memory that tensors may take."""
    return max(0, int((memory - CONTEXT) * (1 - SPARE)))


def room(hardware: Hardware, device: str) -> int:
    """Bytes that tensors may take on this machine's `device`: of a CPU what is free, less a fifth that other processes
    and the C library's allocator may want."""
    if device == "cuda" and hardware.gpu is not None:
        return usable(hardware.gpu.memory)
    return int(0.8 * hardware.available)
