"""Decoding with attention on the simulated device, in a process of its own; prints a JSON line for each window.

error: of the logits from those of the CPU. buffers: how many windows of keys lie in storage of their own.
"""

from __future__ import annotations

import itertools
import json

from tests.gpu.simulated import machine  # isort: skip  # noqa: F401  (before torch)

import torch

from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from tests.gpu.simulated.tensor import on_device, simulated, to_device

PROMPT, LENGTH, VOCAB = 3, 60, 31


def model_of(window: int | str) -> LanguageModel:
    torch.manual_seed(0)
    block = [{"type": "attention", "heads": 2, "window": window}]
    return LanguageModel(
        ModelSpec.model_validate({"width": 32, "blocks": 1, "block": block, "tie": True}), VOCAB
    ).eval()


def main() -> None:
    for window in ("full", 5):
        plain, placed = model_of(window), to_device(model_of(window))
        tokens, error, held = torch.randint(VOCAB, (2, LENGTH)), 0.0, []
        with torch.no_grad(), on_device():
            _, expected = plain.next_logits(tokens[:, :PROMPT])
            _, state = placed.next_logits(simulated(tokens[:, :PROMPT]))  # type: ignore[operator]
            for index in range(PROMPT, LENGTH):
                token = tokens[:, index : index + 1]
                wanted, expected = plain.next_logits(token, expected)
                logits, state = placed.next_logits(simulated(token), state)  # type: ignore[operator]
                error = max(error, float((logits.elem - wanted).abs().max()))
                held.append(state.blocks[0][0].keys.untyped_storage()._cdata)
        buffers = 1 + sum(a != b for a, b in itertools.pairwise(held))
        print(json.dumps({"window": window, "error": error, "buffers": buffers}))


if __name__ == "__main__":
    main()
