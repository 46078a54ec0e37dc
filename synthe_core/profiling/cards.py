"""Graphics cards, and how much of their memory tensors can use."""

from __future__ import annotations

import contextlib

from synthe_core.errors import InputError, closest
from synthe_core.hardware.probe import Hardware
from synthe_core.units import parse_size

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
CUDA_CONTEXT = 600 << 20  # what CUDA, its libraries and their workspaces take before the first tensor
FRAGMENTATION = 0.05  # of the rest: what the allocator cannot use of its blocks


def card_memory(text: str) -> int:
    """Bytes of the card that `text` names: `16GiB`, `8192MiB`, `8` (GiB), `H200`, `rtx 4090`."""
    name = text.strip()
    with contextlib.suppress(ValueError):
        if (size := parse_size(name, unit="GiB")) > 0:
            return size
    matches = [card for card in CARDS if name[:1].isalpha() and name.lower() in card.lower()]
    if matches:
        return min(CARDS[card] for card in matches) << 20
    near = closest(name, CARDS)
    hint = f"did you mean '{near}'?" if near else f"a size such as 8GiB, or one of {', '.join(CARDS)}"
    raise InputError(f"--gpu {text}: no such card", hint)


def usable_bytes(memory: int) -> int:
    """Bytes of a card's memory that tensors can use."""
    return max(0, int((memory - CUDA_CONTEXT) * (1 - FRAGMENTATION)))


def usable_on(hardware: Hardware, device: str) -> int:
    """Bytes that tensors can use on this machine's `device`: of a CPU's memory what is free, less a fifth for other
    processes and the C library's allocator."""
    if device == "cuda" and hardware.gpu is not None:
        return usable_bytes(hardware.gpu.memory)
    return int(0.8 * hardware.available)
