"""Generators of random numbers by seed."""

from __future__ import annotations

import numpy as np
import torch

WORDS = slice(3, 3 + 624)
"""Where the words of a Mersenne Twister are in the state of torch's generator, as int64."""


def random_generator(seed: int) -> torch.Generator:
    """A generator on the CPU whose stream differs from that of every other seed of 64 bits, negative ones included.

    torch's generator of the CPU reads the low 32 bits of a seed only: 0 and 2**32 would give the same stream. For a
    seed that has more, the state is what `init_by_array` of the Mersenne Twister's authors makes of all 64.
    """
    seed %= 1 << 64
    generator = torch.Generator().manual_seed(seed)
    if seed >> 32:
        words = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32]).get_state(legacy=False)["state"]["key"]
        state = generator.get_state()
        state.view(torch.int64)[WORDS] = torch.from_numpy(words.astype(np.int64))
        generator.set_state(state)
    return generator
