"""Launches of each learner on the simulated device: `python -m tests.gpu.simulated.learners [NAME...]`

Of a model with two blocks, less those of one with one block, so that embedding and head are left out. Prints a JSON
line for each learner: launches of a training pass at T = 256 and 1,024, of prefill at 256 and of one decoded token,
with the waits of each.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from tests.gpu.simulated import machine  # isort: skip  # noqa: F401  (before torch)

import torch

from synthe_core.layers import LAYERS
from synthe_core.model.classifier import build_model
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.mixed_linear import cast_once
from tests.gpu.learner_settings import SETTINGS
from tests.gpu.simulated.counts import counting
from tests.gpu.simulated.tensor import on_device, simulated, to_device

VOCAB, WIDTH = 256, 64
LONG = 1024


def model_of(name: str, blocks: int) -> Any:
    torch.manual_seed(0)
    block = [{"type": name, **SETTINGS.get(name, {})}]
    spec = ModelSpec.model_validate({"width": WIDTH, "blocks": blocks, "block": block, "tie": True})
    return to_device(build_model(spec, VOCAB))


def train(model: Any, time: int) -> tuple[int, int]:
    """Launches and waits of a forward and backward pass."""
    model.train()
    model.zero_grad(set_to_none=True)  # a gradient that exists is added to, a launch a parameter
    with on_device():
        tokens = simulated(torch.randint(VOCAB, (1, time)))
        with counting() as counts, cast_once(model.parameters(), torch.bfloat16):
            with torch.autocast("cuda", torch.bfloat16):
                loss, _ = model.loss(tokens, tokens)
                objective = loss.objective
            objective.backward()
    return counts.launches, counts.waits.total()


def decode(model: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Launches and waits of a prompt of 256 tokens, and of the third token after it."""
    model.eval()
    with on_device(), torch.no_grad():
        tokens = simulated(torch.randint(VOCAB, (1, 260)))
        with counting() as prefill:
            _, state = model.next_logits(tokens[:, :256])
        for index in range(256, 259):
            with counting() as one:
                _, state = model.next_logits(tokens[:, index : index + 1], state)
    return (prefill.launches, prefill.waits.total()), (one.launches, one.waits.total())


def figures(name: str) -> dict[str, Any]:
    counted = []
    for blocks in (1, 2):
        model = model_of(name, blocks)
        counted.append((train(model, 256), train(model, LONG), *decode(model)))
    names = ("train 256", f"train {LONG}", "prefill 256", "decode")
    return {
        title: {"launches": two[0] - one[0], "waits": two[1] - one[1]}
        for title, one, two in zip(names, *counted, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("learners", nargs="*")
    options = parser.parse_args()
    for name in options.learners or LAYERS:
        if not LAYERS[name].causal or LAYERS[name].reads(LAYERS[name].Config.model_construct()):
            continue  # an encoder's, or one that needs the signals of another
        print(json.dumps({"learner": name, **figures(name)}), flush=True)


if __name__ == "__main__":
    main()
