"""Times the native kernel of `slots` beside the chunked one, alternating: python -m tests.ops.measure_slot_memory"""

from __future__ import annotations

import statistics
import time

import torch

from synthe_core.layers import build, parse
from synthe_core.layers.learner import Learner, Pass
from synthe_core.ops.dispatch import use_kernels

CASES = [(64, 32, 4, 256, 192), (64, 1, 4, 256, 192), (16, 1, 4, 256, 192), (256, 32, 4, 256, 192)]
CASES += [(1024, 32, 2, 256, 512), (1024, 1, 2, 64, 512)]
TURNS, DECODED = 5, 64


def seconds(learner: Learner, x: torch.Tensor, kernel: str) -> float:
    """CPU time of a pass with its gradient, or of decoding where the learner is not in training."""
    began = time.process_time()
    with use_kernels(slot_memory=kernel):
        if learner.training:
            learner(x, None, Pass.over(x))[0].sum().backward()
        else:
            state = None
            with torch.no_grad():
                for t in range(x.shape[1]):
                    token = x[:, t : t + 1]
                    _, state = learner(token, state, Pass.over(token, start=torch.full((len(x),), t)))
    return time.process_time() - began


def main() -> None:
    torch.set_num_threads(1)
    for slots, chunk, batch, length, width in CASES:
        config = {"type": "slots", "slots": slots, "chunk": chunk, "heads": 4 if width == 512 else 3}
        learner = build(parse(config | {"writes": min(8, chunk), "reads": min(8, slots)}), width)
        for training in (True, False):
            learner.train(training)
            x = torch.randn(batch, length, width) if training else torch.randn(1, DECODED, width)
            for kernel in ("chunked", "native"):
                seconds(learner, x[:, :8], kernel)
            turns = [[seconds(learner, x, kernel) for kernel in ("chunked", "native")] for _ in range(TURNS)]
            middle = [1e3 * statistics.median(column) for column in zip(*turns, strict=True)]
            ratio = statistics.median(a / b for a, b in turns)
            what = "training" if training else "decoding"
            print(f"J={slots} C={chunk} D={width} {what}: {middle[0]:.1f} ms, {middle[1]:.1f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
