"""What `auto` means on this machine: precision and micro-batch, by measuring real passes of the model."""

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
from synthe_core.training.objectives import default_objective
from synthe_core.training.settings import Settings
from synthe_core.training.settings import settings as settings_of

WORTH = 1.1  # bfloat16 must be this much faster to be worth its rounding
BETTER = 1.04  # a larger micro-batch must be this much faster per token on a CPU
FEWEST, MOST = 1024, 16384  # tokens of a pass between which a CPU's best lies
PATIENCE = 12.0  # seconds after which the search on a CPU settles for the best so far
SHARE = 0.03  # of a budget of time at most


def tune(model: Model, recipe: Recipe, settings: Settings, hardware: Hardware) -> Iterator[Event]:
    """Decides `settings.precision` and `settings.micro_batch`, and says why. The model is left as it was.

    What was measured is kept in the cache, so that the same recipe gives the same weights on the same machine: the
    order of additions depends on both, and two measurements need not agree.
    """
    kept = _kept(model, recipe, settings, hardware)
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        settings.precision, settings.micro_batch = str(found["precision"]), int(found["micro_batch"])
        yield Notice(f"{found['why']} (measured before: {kept})")
        return
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing kept
    timer = PassTimer(model, settings, recipe.data.sequence)
    reasons = [_precision(timer, recipe, settings, hardware), _micro_batch(timer, recipe, settings)]
    yield from map(Notice, reasons)
    if "auto" in (recipe.runtime.precision, recipe.train.micro_batch):
        kept.parent.mkdir(parents=True, exist_ok=True)
        choice = {"precision": settings.precision, "micro_batch": settings.micro_batch, "why": "; ".join(reasons)}
        write_file(kept, json.dumps(choice) + "\n")


def _kept(model: Model, recipe: Recipe, settings: Settings, hardware: Hardware) -> Path:
    """Where the choice for this model on this machine is kept: a name made of all that it depends on."""
    facts = {
        "model": recipe.model.model_dump(mode="json"),
        "vocab": model.vocab,
        "sequence": recipe.data.sequence,
        "batch": recipe.train.batch,
        "micro_batch": recipe.train.micro_batch,
        "runtime": recipe.runtime.model_dump(mode="json", exclude={"log", "compile"}),
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
    """Times kernels, then precision and micro-batch, for a recipe that is to be trained here; all of it anew.

    The model has its initial weights, and made-up tokens: neither changes how long work takes. The Result is what
    training will find.
    """
    hardware = hardware or probe()
    chosen = settings_of(recipe, hardware)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.runtime.threads or threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = build_model(recipe.model, vocabulary_of(recipe), recipe.runtime.recompute).to(chosen.device)
        batch = PassTimer(model, chosen, recipe.data.sequence).batch(smallest(recipe))
        chosen.context = replace(chosen.context, tuned_kernels={})
        yield from tune_kernels(model, batch, recipe, chosen.context, hardware)
        tuned = tuned_kernels(recipe, chosen.device.type, hardware)
        chosen.context = replace(chosen.context, tuned_kernels=tuned)
        _kept(model, recipe, chosen, hardware).unlink(missing_ok=True)
        yield from tune(model, recipe, chosen, hardware)
    finally:
        torch.set_num_threads(threads)
    values = {"precision": chosen.precision, "micro_batch": chosen.micro_batch, **chosen.context.tuned_kernels}
    yield Result(dict(values))


class PassTimer:
    """Timed passes over made-up tokens: forward and backward."""

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
        batch = self.batch(rows)
        devices = [settings.device] if settings.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                start = time.perf_counter()
                accumulate_gradients(default_objective(self.model), self.model, batch, settings, sequence=self.sequence)
                settings.context.synchronize()
                return time.perf_counter() - start
        finally:
            for parameter in self.model.parameters():
                parameter.grad = None


def _precision(timer: PassTimer, recipe: Recipe, settings: Settings, hardware: Hardware) -> str:
    asked, kind = recipe.runtime.precision, settings.device.type
    chosen = choose_precision(asked, kind, hardware)
    settings.precision = chosen.value
    if asked != "auto" or kind != "cpu" or chosen.value == "float32":
        return f"precision {chosen.value}: {chosen.reason}"
    rows = smallest(recipe)
    seconds = {"float32": float("inf"), "bfloat16": float("inf")}
    first = max(timer.seconds(rows, precision) for precision in seconds)  # loads kernels too, and so is not counted
    for _ in range(3 if first < 1 else 1):
        for precision in seconds:
            seconds[precision] = min(seconds[precision], timer.seconds(rows, precision))
    ratio = seconds["float32"] / seconds["bfloat16"]
    settings.precision = "bfloat16" if ratio > WORTH else "float32"
    return f"precision {settings.precision}: a pass in bfloat16 runs at {ratio:.2f} times the speed of float32 here"


def _micro_batch(timer: PassTimer, recipe: Recipe, settings: Settings) -> str:
    batch, length = recipe.train.batch, recipe.data.sequence
    wanted = recipe.train.micro_batch
    if wanted != "auto":
        settings.micro_batch = min(wanted, batch)
        return f"micro-batch {settings.micro_batch} of {batch}: the recipe says so"
    try:
        row = device_memory.row_bytes(timer.model, timer.batch(1), settings)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        row = float("inf")
    room = device_memory.planned(timer.model, settings.device)
    fitting = [rows for rows in ladder(batch) if rows * row <= room] or [1]
    if settings.device.type != "cpu":
        settings.micro_batch = fitting[-1]
        return f"micro-batch {settings.micro_batch} of {batch}: the largest that fits"
    candidates = [rows for rows in fitting if FEWEST <= rows * length <= MOST] or [
        min(fitting, key=lambda rows: abs(rows * length - FEWEST))
    ]
    settings.micro_batch, rate = candidates[0], 0.0
    if len(candidates) == 1:
        return f"micro-batch {settings.micro_batch} of {batch}: about the fastest size for a CPU that fits"
    budget = recipe.train.budget
    patience = min(PATIENCE, SHARE * budget.amount) if budget.unit == "seconds" else PATIENCE
    start = time.perf_counter()
    for rows in candidates:
        try:
            timer.seconds(rows, settings.precision)
            found = rows * length / min(timer.seconds(rows, settings.precision) for _ in range(2))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        if found < rate * BETTER:
            break
        settings.micro_batch, rate = rows, found
        if 3 * (time.perf_counter() - start) > patience:  # the next one takes twice as long
            break
    return f"micro-batch {settings.micro_batch} of {batch}: the fastest measured, {rate:.0f} tokens/s"


def ladder(batch: int) -> list[int]:
    """Rows of a pass that cut `batch` into 1, 2, 4, ... about equal parts, smallest first."""
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes[::-1]


def smallest(recipe: Recipe) -> int:
    """The fewest rows of the ladder that give a CPU enough to do."""
    return next((n for n in ladder(recipe.train.batch) if n * recipe.data.sequence >= FEWEST), recipe.train.batch)
