"""What only a card can show, as one JSON: `python -m tests.gpu.device RESULT.json`, or `--dry-run`.

Parts, each with its share of ten minutes, each written when it is done:

laws       every learner: passes of any split, padding and the rows beside one change nothing: relative error
kernels    every kernel that serves a call of the learners, against the reference: relative error, forward and backward
operators  learners at T = 2,048 to 32,768 by each kernel: milliseconds, forward and backward
training   recipes for a minute each: tokens a second, and the share of the peak by our own count of operations
decoding   steps at 1, 32 and 256 rows, launched one by one and captured: the share of the memory's bandwidth
memory     the allocator's peak in a training pass, beside what was predicted

The dry run goes through all of it on the simulated device with small sizes. It states no times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests.gpu.dry_run import DRY  # isort: skip  (before torch)

import torch

from synthe_core import state as states
from synthe_core.data.stream import Batch
from synthe_core.errors import SyntheError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.kernel_tuning import unique_calls
from synthe_core.hardware.probe import probe
from synthe_core.hardware.rates import measure_copy
from synthe_core.inference.captured_decode import CapturedDecoder, cuda_graph, uncaptured
from synthe_core.layers import LAYERS
from synthe_core.model.classifier import build_model
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.dispatch import OPS, record_ops, use_kernels
from synthe_core.profiling.device_memory import row_bytes
from synthe_core.recipe.schema import Recipe
from synthe_core.training.optimizer import Optimizer
from tests.gpu.learner_settings import SETTINGS
from tests.paths import RECIPES

CUDA = torch.device("cuda:0")
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12, "B200": 2250e12}
"""Dense bfloat16 operations a second, as the makers state them."""
OPERATORS = {"delta": "delta_rule", "kda": "kda", "mamba2": "linear_attention", "kalman": "kalman_filter"} | {
    "slots": "slot_memory",
    "momentum": "gated_average",
}
LEARNERS = [
    name for name in LAYERS if LAYERS[name].causal and not LAYERS[name].reads(LAYERS[name].Config.model_construct())
]
"""Those that need no signals of another."""
ROUNDS = 1 if DRY else 5


def placed(module: Any) -> Any:
    if not DRY:
        return module.to(CUDA)
    from tests.gpu.simulated.tensor import to_device

    return to_device(module)


def on_card(tensor: torch.Tensor) -> torch.Tensor:
    if not DRY:
        return tensor.to(CUDA)
    from tests.gpu.simulated.tensor import simulated

    return simulated(tensor)


@contextmanager
def device() -> Iterator[None]:
    if not DRY:
        yield
        return
    from tests.gpu.simulated.tensor import on_device

    with on_device():
        yield


def seconds(run: Callable[[], Any]) -> float | None:
    """The median of ROUNDS runs after one that does not count; None in a dry run."""
    times = []
    for round_ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if round_:
            times.append(time.perf_counter() - start)
    return None if DRY else statistics.median(times)


def learner_model(name: str, width: int) -> Any:
    torch.manual_seed(0)
    block = [{"type": name, **SETTINGS.get(name, {})}]
    spec = ModelSpec.model_validate({"width": width, "blocks": 1, "block": block, "tie": True})
    return placed(build_model(spec, 256)).train()


def backward(model: Any, tokens: torch.Tensor, precision: str) -> None:
    with ExecutionContext(device=CUDA, precision=precision).activate():
        loss = model.loss(tokens, tokens)[0].objective
    loss.backward()


def laws() -> dict[str, Any]:
    """learner -> law -> the largest relative error of logits: of a text in three passes instead of one, beside padding,
    and alone instead of beside another row."""
    errors: dict[str, dict[str, float]] = {}
    for name in LEARNERS:
        model = learner_model(name, 64).eval()
        tokens = on_card(torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(0)))
        with torch.no_grad(), ExecutionContext(device=CUDA).activate():
            whole, _ = model(tokens)
            state, parts = None, []
            for start, end in ((0, 17), (17, 18), (18, 40)):
                part, state = model(tokens[:, start:end], state)
                parts.append(part)
            padded, _ = model(tokens, None, on_card(torch.tensor([40, 23])))
            alone, _ = model(tokens[1:])
        errors[name] = {
            "split": relative(torch.cat(parts, 1), whole),
            "padding": relative(padded[1:, :23], whole[1:, :23]),
            "rows": relative(alone, whole[1:]),
        }
    return errors


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-9))


def kernels() -> dict[str, Any]:
    """operator -> kernel -> the largest relative error of outputs and gradients over the learners' calls."""
    errors: dict[str, dict[str, Any]] = {}
    for name in SETTINGS:
        model = learner_model(name, 64)
        with record_ops() as recorder:
            model.loss(*[on_card(torch.randint(256, (2, 67)))] * 2)
        for op, calls in unique_calls(recorder.calls).items():
            for kernel in op.kernels:
                for call in calls:
                    if kernel.refusal(probe(), call) is None:
                        worst = errors.setdefault(op.name, {}).get(kernel.name, 0.0)
                        errors[op.name][kernel.name] = max(worst, difference(op, kernel.name, call))
    return errors


def difference(op: Any, kernel: str, call: Any) -> float:
    """Of a kernel's outputs and gradients from the reference's, relative to the largest number of each."""

    def results(name: str) -> list[torch.Tensor]:
        arguments = {
            key: value.detach().clone().requires_grad_(value.requires_grad)
            if isinstance(value, torch.Tensor)
            else value
            for key, value in call.arguments.items()
        }
        out = op.named(name)(**arguments)
        outputs = [x for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, torch.Tensor)]
        carrying = [x for x in outputs if x.requires_grad]
        leaves = [x for x in arguments.values() if isinstance(x, torch.Tensor) and x.requires_grad]
        ones = [torch.ones_like(x) for x in carrying]
        grads = torch.autograd.grad(carrying, leaves, ones, allow_unused=True) if carrying else ()
        return [x for x in (*outputs, *grads) if x is not None and x.is_floating_point()]

    pairs = zip(results(kernel), results("reference"), strict=True)
    return max(relative(a, b) for a, b in pairs if b.numel())


def operators() -> dict[str, Any]:
    """learner -> T -> kernel -> milliseconds, forward and backward, of a model of that one learner."""
    times: dict[str, Any] = {}
    for name, op in OPERATORS.items():
        model = learner_model(name, 64 if DRY else 1024)
        for length in (64,) if DRY else (2048, 8192, 32768):
            tokens = on_card(torch.randint(256, (1, length)))
            for kernel in OPS[op].kernels:
                if kernel.name == "native":
                    continue
                try:
                    with use_kernels(**{op: kernel.name}):
                        loss = lambda m=model, t=tokens: m.loss(t, t)[0].objective.backward()  # noqa: E731
                        taken = seconds(loss)
                except (SyntheError, RuntimeError) as error:
                    times.setdefault(name, {}).setdefault(length, {})[kernel.name] = str(error).splitlines()[0][:100]
                    continue
                times.setdefault(name, {}).setdefault(length, {})[kernel.name] = None if taken is None else 1e3 * taken
    return times


def training() -> dict[str, Any]:
    """recipe -> tokens a second, share of the peak, launches of the optimizer left aside."""
    results: dict[str, Any] = {}
    gpu = probe().gpu
    peak = next((rate for name, rate in PEAKS.items() if gpu is not None and name in gpu.name), None)
    for name in ("tiny", "60m"):
        recipe = Recipe.load(str(RECIPES / f"{name}.yaml"), ["model.blocks=2"] if DRY else [])
        model = placed(build_model(recipe.model, 512 if DRY else 16384, recipe.runtime.recompute)).train()
        optimizer, length = Optimizer(model, recipe.train), 64 if DRY else recipe.data.sequence
        rows, steps, read = 2 if DRY else 32, 0, 0
        start = time.perf_counter()
        while steps < 2 or (not DRY and time.perf_counter() - start < 60):
            if steps == 1:  # the first compiles
                torch.cuda.synchronize()
                start, read = time.perf_counter(), 0
            backward(model, on_card(torch.randint(512, (rows, length))), "bfloat16")
            optimizer.step(1.0)
            optimizer.zero_grad()
            steps, read = steps + 1, read + rows * length
        torch.cuda.synchronize()
        rate = read / (time.perf_counter() - start)
        share = 3 * model.flops(length) * rate / peak if peak else None
        results[name] = {"tokens_per_second": None if DRY else rate, "mfu": None if DRY else share}
    return results


def decoding() -> dict[str, Any]:
    """rows -> by launches and by graph: steps a second, and the share of the bandwidth that weights and state need."""
    recipe = Recipe.load(str(RECIPES / "60m-flat.yaml"), ["model.blocks=2"] if DRY else [])
    model = placed(build_model(recipe.model, 512 if DRY else 16384)).eval()
    weights = sum(p.nbytes for p in model.parameters())
    bandwidth = None if DRY else measure_copy("cuda")
    results: dict[str, Any] = {}
    for rows in (1, 2) if DRY else (1, 32, 256):
        with torch.inference_mode():
            tokens, state = on_card(torch.zeros(rows, 1, dtype=torch.int64)), model.init_state(rows, device=CUDA)
            needed = weights + 2 * states.nbytes(state)
            decoders = {
                "launches": lambda: model.next_logits(tokens, state),  # noqa: B023
                "graph": captured(model, tokens, state),
            }
            for name, run in decoders.items():
                taken = seconds(run)
                share = None if taken is None or bandwidth is None else needed / taken / bandwidth
                figures = {"steps_per_second": None if taken is None else 1 / taken, "bandwidth_share": share}
                results.setdefault(str(rows), {})[name] = figures
    return results


def captured(model: Any, tokens: torch.Tensor, state: Any) -> Callable[[], Any]:
    decoder = CapturedDecoder(model, uncaptured if DRY else cuda_graph)
    before = [state]

    def step() -> None:
        output = decoder(tokens, before[0])
        assert output is not None
        before[0] = output.state

    return step


def memory() -> dict[str, Any]:
    """The allocator's peak of a training pass of `tiny`, and what was predicted: weights, gradients, saved rows."""
    recipe = Recipe.load(str(RECIPES / "tiny.yaml"), [])
    model = placed(build_model(recipe.model, 512)).train()
    rows, length = 4, 64 if DRY else recipe.data.sequence
    tokens = on_card(torch.randint(512, (rows, length)))
    weights = sum(p.nbytes for p in model.parameters())
    context = ExecutionContext(device=CUDA, precision="bfloat16")
    predicted = None if DRY else 2 * weights + rows * row_bytes(model, Batch(tokens[:1], tokens[:1]), context)
    if not DRY:
        torch.cuda.reset_peak_memory_stats()
    backward(model, tokens, "bfloat16")
    return {"peak_bytes": None if DRY else torch.cuda.max_memory_allocated(), "predicted_bytes": predicted}


PARTS = {each.__name__: each for each in (laws, kernels, decoding, training, operators, memory)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--part", action="append", choices=list(PARTS))
    options = parser.parse_args()
    gpu = probe().gpu
    results: dict[str, Any] = {"device": None if gpu is None else gpu.name, "torch": torch.__version__, "dry": DRY}
    for name in options.part or PARTS:
        start = time.perf_counter()
        with device() if DRY else nullcontext():
            try:
                results[name] = PARTS[name]()
            except Exception as error:  # the others still run
                results[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
        if not DRY:
            results[f"{name}_seconds"] = time.perf_counter() - start
        if options.result is not None:
            options.result.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
