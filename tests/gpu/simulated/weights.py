"""A checkpoint loaded to the simulated device in 16 bits, in a process of its own; prints a JSON line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.gpu.simulated import machine  # isort: skip  # noqa: F401  (before torch)

import torch

from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.storage.checkpoint import Checkpoint
from tests.gpu.simulated.counts import counting
from tests.gpu.simulated.tensor import CUDA, on_device, simulated
from tests.inference.conftest import written

BLOCK = [{"type": "momentum"}, {"type": "delta", "heads": 2}, {"type": "mlp", "hidden": 128}]


def main() -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot become a wrapper in place
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = written(Path(folder) / "model", BLOCK, width=64)
        exact, _ = LoadedModel.load(path).model.next_logits(tokens)
        with on_device():
            model = LoadedModel.from_checkpoint(Checkpoint.open(path), "m", CUDA, weights="bfloat16")
            with model.context.activate(), counting() as counts:
                logits, _ = model.model.next_logits(simulated(tokens))
    error = float((logits.elem - exact).abs().max() / exact.abs().max())  # type: ignore[attr-defined]
    print(json.dumps({"error": error, "summary": model.weights_summary, "waits": counts.waits.total()}))


if __name__ == "__main__":
    main()
