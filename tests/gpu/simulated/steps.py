"""Whole steps on the simulated device, as JSON: `python -m tests.gpu.simulated.steps`

One training step (forward, backward, clipping, Muon and AdamW) and one step of the engine that generates for four
sequences, greedy and drawn, with the captured step as it runs without a graph. Then what requests may do beside that:
an embedding, and a cached state that comes back from its file.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.gpu.simulated import machine  # isort: skip  # noqa: F401  (before torch)

import torch

from synthe_core import state as states
from synthe_core.data.stream import Batch
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.inference import captured_decode
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import PooledOutput
from synthe_core.inference.prefix_cache import CachedState, PrefixCache
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.model.classifier import build_model
from synthe_core.model.spec import ModelSpec
from synthe_core.recipe.schema import TrainSpec
from synthe_core.training.objectives.language_modeling import LanguageModeling
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import Settings
from synthe_core.training.state import TrainState
from synthe_core.training.step import train_step
from tests.gpu.simulated.counts import Counts, counting
from tests.gpu.simulated.tensor import CUDA, on_device, to_device

VOCAB = 257
BLOCK = [{"type": "delta", "heads": 2}, {"type": "kalman"}, {"type": "mlp", "hidden": 64}]


def model_of() -> Any:
    torch.manual_seed(0)
    spec = ModelSpec.model_validate({"width": 32, "blocks": 2, "block": BLOCK, "tie": False})
    return to_device(build_model(spec, VOCAB))


def figures(counts: Counts) -> dict[str, Any]:
    return {"launches": counts.launches, "waits": dict(counts.waits), "copies": counts.copies.total()}


def training_step() -> dict[str, Any]:
    model = model_of()
    spec = TrainSpec.model_validate({"batch": 4, "micro_batch": 2, "clip": 0.01})
    settings = Settings(ExecutionContext(device=CUDA, precision="bfloat16"), 2)
    state = TrainState(model, LanguageModeling(), Optimizer(model, spec), spec, settings)
    for _ in range(2):
        tokens = torch.randint(VOCAB, (4, 33))
        batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        with on_device(), counting() as counts:
            result = train_step(state, batch)
        assert not result.skipped
    with on_device(), counting() as muon:
        state.optimizer.parts["muon"].step()
    return figures(counts) | {"muon": muon.launches}


def requests() -> list[Request]:
    drawn = SamplingParams(temperature=0.8, top_p=0.9, top_k=20, repetition_penalty=1.1, frequency_penalty=0.1)
    settings = [SamplingParams(temperature=0), drawn, drawn, SamplingParams(temperature=1.0)]
    options: dict[str, Any] = {"ignore_eos": True, "return_logprob": False}
    return [Request("m", tuple(range(1, 20)), 12, each, seed=i, **options) for i, each in enumerate(settings)]


def engine_steps() -> dict[str, Any]:
    """The counts of a step in which four sequences generate a token each, and of a mixture of both kinds of work."""
    captured_decode.CAPTURES["cuda"] = captured_decode.uncaptured
    loaded = LoadedModel("m", model_of().eval(), ByteTokenizer(), context=ExecutionContext(device=CUDA))
    engine = Engine([loaded], cache_bytes=0, max_state_bytes=1 << 28)
    outputs: list[Any] = []

    def collect(output: Any) -> bool:
        outputs.append(output)
        return False

    with on_device():
        made = [engine.add_request(each, collect) for each in requests()]
        for _ in range(6):
            with counting() as counts:
                engine.step()
        while engine.has_unfinished:
            engine.step()
        engine.add_request(Request("m", tuple(range(1, 20)), 0, pooling=True), collect)
        while engine.has_unfinished:
            engine.step()
    assert all(each.error is None and len(each.output_token_ids) == 12 for each in made), made[0].error
    pooled = next(each for each in outputs if isinstance(each, PooledOutput))
    return figures(counts) | {"embedding": str(pooled.hidden.device)}


def spilled_state() -> str:
    """The device of a cached state that was moved to a file and read again."""
    model = model_of().eval()
    with tempfile.TemporaryDirectory() as folder, on_device(), torch.inference_mode():
        entries = [CachedState("m", list(range(n, n + 8)), model.init_state(1), None, None, True) for n in (0, 50)]
        whole = PrefixCache(1 << 30)
        whole.put(entries[0])
        cache = PrefixCache(whole.bytes + 1, Path(folder))
        for each in entries:
            cache.put(each)
        assert cache.spilled_bytes
        cached = cache.longest("m", list(range(9)))
        assert cached is not None
        devices = {str(leaf.device) for _, leaf in states.named_leaves(cached.state)}
        cache.close()
    return ", ".join(sorted(devices))


def main() -> None:
    results = {"training": training_step(), "engine": engine_steps(), "spilled": spilled_state()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
