"""What `auto` means on this machine: precision and micro-batch, from timed passes of the model."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from synthe_core.data.stream import Batch
from synthe_core.events import Event, Notice, Result
from synthe_core.hardware.kernel_tuning import tune_kernels, tuned_kernels
from synthe_core.hardware.placement import choose_precision
from synthe_core.hardware.probe import Hardware, cache_dir, probe
from synthe_core.model.classifier import Classifier, Model, build_model
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.profiling import device_memory
from synthe_core.recipe.accounting import vocabulary_of
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.atomic import write_file
from synthe_core.storage.manifest import describe_hardware, package_versions
from synthe_core.training.gradients import accumulate_gradients, is_out_of_memory
from synthe_core.training.objectives import objective_for
from synthe_core.training.settings import Settings, settings_for

MIN_BFLOAT16_SPEEDUP = 1.1  # bfloat16 must be this much faster to be worth its rounding
MIN_MICRO_BATCH_SPEEDUP = 1.04  # a larger micro-batch must be this much faster per token on a CPU
MIN_TOKENS, MAX_TOKENS = 1024, 16384  # of a pass, between which a CPU is fastest
TIME_LIMIT = 12.0  # seconds after which the search on a CPU takes the best so far
TIME_SHARE = 0.03  # of a budget of time, at most


def tune(model: Model, recipe: Recipe, settings: Settings, hardware: Hardware) -> Iterator[Event]:
    """Decides `settings.precision` and `settings.micro_batch`, and says why. The model does not change.

    The choice is cached, so that the same recipe gives the same weights on the same machine: the order of additions
    depends on both, and two measurements need not agree.
    """
    path = _cached_choice(model, recipe, settings, hardware)
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
        settings.precision, settings.micro_batch = str(cached["precision"]), int(cached["micro_batch"])
        yield Notice(f"{cached['why']} (measured before: {path})")
        return
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # not cached
    timer = PassTimer(model, settings, recipe.data.sequence)
    reasons = [_precision(timer, recipe, settings, hardware), _micro_batch(timer, recipe, settings)]
    yield from map(Notice, reasons)
    if "auto" in (recipe.runtime.precision, recipe.train.micro_batch):
        path.parent.mkdir(parents=True, exist_ok=True)
        choice = {"precision": settings.precision, "micro_batch": settings.micro_batch, "why": "; ".join(reasons)}
        write_file(path, json.dumps(choice) + "\n")


def _cached_choice(model: Model, recipe: Recipe, settings: Settings, hardware: Hardware) -> Path:
    """The file of the choice for this model on this machine. Its name is a hash of all that the choice depends on."""
    facts = {
        "model": recipe.model.model_dump(mode="json"),
        "vocab": model.vocab,
        "sequence": recipe.data.sequence,
        "batch": recipe.train.batch,
        "micro_batch": recipe.train.micro_batch,
        "runtime": recipe.runtime.model_dump(mode="json", exclude={"log", "compile", "mesh"}),
        "threads": torch.get_num_threads(),
        "device": settings.device.type,
        "machine": describe_hardware(hardware),
        "versions": package_versions(),
    }
    if recipe.train.lora is not None:
        facts["lora"] = recipe.train.lora.model_dump(mode="json")
    if settings.context.tuned_kernels:
        facts["tuned_kernels"] = dict(settings.context.tuned_kernels)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir() / "tuning" / f"{digest}.json"


def tune_all(recipe: Recipe, hardware: Hardware | None = None) -> Iterator[Event]:
    """Times kernels, then precision and micro-batch, of a recipe that is to be trained here, whatever is cached.

    The model has its initial weights and reads random tokens: neither changes how long a pass takes. The Result is the
    choice that training will use.
    """
    hardware = hardware or probe()
    settings = settings_for(recipe, hardware)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.runtime.threads or threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = build_model(recipe.model, vocabulary_of(recipe), recipe.runtime.recompute).to(settings.device)
        batch = PassTimer(model, settings, recipe.data.sequence).batch(smallest_efficient_rows(recipe))
        settings.context = replace(settings.context, tuned_kernels={})
        yield from tune_kernels(model, batch, recipe, settings.context, hardware)
        tuned = tuned_kernels(recipe, settings.device.type, hardware)
        settings.context = replace(settings.context, tuned_kernels=tuned)
        _cached_choice(model, recipe, settings, hardware).unlink(missing_ok=True)
        yield from tune(model, recipe, settings, hardware)
    finally:
        torch.set_num_threads(threads)
    values = {"precision": settings.precision, "micro_batch": settings.micro_batch, **settings.context.tuned_kernels}
    yield Result(dict(values))


class PassTimer:
    """Times passes over random tokens, forward and backward."""

    def __init__(self, model: Model, settings: Settings, sequence: int) -> None:
        self.model, self.settings, self.sequence = model, settings, sequence
        self._generator = torch.Generator().manual_seed(0)

    def batch(self, rows: int) -> Batch:
        tokens = torch.randint(self.model.vocab, (rows, self.sequence + 1), generator=self._generator)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        if isinstance(self.model, Classifier):
            targets = torch.full_like(inputs, IGNORED)
            targets[:, -1] = 0
        return Batch(inputs, targets)

    def seconds(self, rows: int, precision: str) -> float:
        """Of one pass over `rows` sequences."""
        settings = Settings(replace(self.settings.context, precision=precision), rows)
        objective, batch = objective_for(self.model), self.batch(rows)
        devices = [settings.device] if settings.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                start = time.perf_counter()
                accumulate_gradients(objective, self.model, batch, settings, sequence=self.sequence)
                settings.context.synchronize()
                return time.perf_counter() - start
        finally:
            for parameter in self.model.parameters():
                parameter.grad = None


def _precision(timer: PassTimer, recipe: Recipe, settings: Settings, hardware: Hardware) -> str:
    """Decides the precision; returns the reason."""
    setting, device = recipe.runtime.precision, settings.device.type
    choice = choose_precision(setting, device, hardware)
    settings.precision = choice.value
    if setting != "auto" or device != "cpu" or choice.value == "float32":
        return f"precision {choice.value}: {choice.reason}"
    rows = smallest_efficient_rows(recipe)
    seconds = {"float32": float("inf"), "bfloat16": float("inf")}
    first = max(timer.seconds(rows, precision) for precision in seconds)  # loads kernels too, and so does not count
    for _ in range(3 if first < 1 else 1):
        for precision in seconds:
            seconds[precision] = min(seconds[precision], timer.seconds(rows, precision))
    speedup = seconds["float32"] / seconds["bfloat16"]
    settings.precision = "bfloat16" if speedup > MIN_BFLOAT16_SPEEDUP else "float32"
    return f"precision {settings.precision}: a pass in bfloat16 runs at {speedup:.2f} times the speed of float32 here"


def _micro_batch(timer: PassTimer, recipe: Recipe, settings: Settings) -> str:
    """Decides the micro-batch; returns the reason."""
    batch, length = recipe.train.batch, recipe.data.sequence
    if recipe.train.micro_batch != "auto":
        settings.micro_batch = min(recipe.train.micro_batch, batch)
        return f"micro-batch {settings.micro_batch} of {batch}: the recipe says so"
    fitting = _fitting_rows(timer, batch, settings)
    if settings.device.type != "cpu":
        settings.micro_batch = fitting[-1]
        return f"micro-batch {settings.micro_batch} of {batch}: the largest that fits"
    candidates = [rows for rows in fitting if MIN_TOKENS <= rows * length <= MAX_TOKENS] or [
        min(fitting, key=lambda rows: abs(rows * length - MIN_TOKENS))
    ]
    settings.micro_batch = candidates[0]
    if len(candidates) == 1:
        return f"micro-batch {settings.micro_batch} of {batch}: about the fastest size for a CPU that fits"
    budget = recipe.train.budget
    limit = min(TIME_LIMIT, TIME_SHARE * budget.amount) if budget.unit == "seconds" else TIME_LIMIT
    settings.micro_batch, speed = _fastest(timer, candidates, settings.precision, limit)
    return f"micro-batch {settings.micro_batch} of {batch}: the fastest measured, {speed:.0f} tokens/s"


def _fitting_rows(timer: PassTimer, batch: int, settings: Settings) -> list[int]:
    """The micro-batch sizes that fit into memory; the smallest size if none does."""
    try:
        row = device_memory.row_bytes(timer.model, timer.batch(1), settings.context)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        row = float("inf")
    available = device_memory.available_for_rows(timer.model, settings.device)
    return [rows for rows in micro_batch_sizes(batch) if rows * row <= available] or [1]


def _fastest(timer: PassTimer, candidates: list[int], precision: str, limit: float) -> tuple[int, float]:
    """The rows of the fastest pass per token, and its tokens per second. The search ends at the first size that is not
    faster, that runs out of memory, or that the next one would take past `limit` seconds."""
    best, speed = candidates[0], 0.0
    start = time.perf_counter()
    for rows in candidates:
        try:
            timer.seconds(rows, precision)
            measured = rows * timer.sequence / min(timer.seconds(rows, precision) for _ in range(2))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        if measured < speed * MIN_MICRO_BATCH_SPEEDUP:
            break
        best, speed = rows, measured
        if 3 * (time.perf_counter() - start) > limit:  # the next one takes twice as long
            break
    return best, speed


def micro_batch_sizes(batch: int) -> list[int]:
    """Rows of a pass that cut `batch` into 1, 2, 4, ... about equal parts, smallest first."""
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes[::-1]


def smallest_efficient_rows(recipe: Recipe) -> int:
    """The smallest micro-batch that keeps a CPU busy."""
    sizes = micro_batch_sizes(recipe.train.batch)
    return next((rows for rows in sizes if rows * recipe.data.sequence >= MIN_TOKENS), recipe.train.batch)
