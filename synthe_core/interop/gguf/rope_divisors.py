"""Llama 3's scaling of rotary frequencies, of which a GGUF file has the divisors only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def rope_divisors(scaling: Mapping[str, Any], head: int, base: float) -> Tensor:
    """What each frequency of a head is divided by, float64 [head / 2], given transformers' `rope_scaling` of llama3.

    1 for frequencies that turn more than `high_freq_factor` times in the original context, `factor` for those that turn
    less than `low_freq_factor` times; between them the frequencies are mixed linearly.
    """
    frequencies = base ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - share) / scaling["factor"] + share)


def scaling_of(divisors: Tensor, head: int, base: float, contexts: tuple[int, ...]) -> dict[str, Any] | None:
    """The scaling with Llama 3's two bounds that has these divisors, for one of the original `contexts`; None if there
    is none."""
    for context in contexts:
        scaling = {
            "rope_type": "llama3",
            "factor": float(divisors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": context,
        }
        expected = rope_divisors(scaling, head, base)
        if expected.shape == divisors.shape and torch.allclose(expected, divisors, rtol=1e-3):
            return scaling
    return None
