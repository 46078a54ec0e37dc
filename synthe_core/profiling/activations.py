"""What passes through a model hold besides its weights: measured on a small one, and linear from there.

Blocks are alike and rows are independent, so what a pass holds is linear in both; one block and two, one row and two,
at the length that is asked for, tell everything. Only the loss is not: it takes its logits in chunks of a fixed size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.data.stream import Batch
from synthe_core.layers.learner import Learner
from synthe_core.model.classifier import Model, build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.ops.cross_entropy import CHUNK_BYTES
from synthe_core.profiling.allocations import held
from synthe_core.recipe.schema import Recipe
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import Settings
from synthe_core.training.tuning import PassTimer

LONGEST = 1024  # tokens of a small run at most; what is longer is extrapolated from here and from half of it


@dataclass(frozen=True)
class Plane:
    """bytes = one + block · (blocks - 1) + row · (rows - 1) + both · (blocks - 1) (rows - 1)."""

    one: float
    block: float
    row: float
    both: float

    @classmethod
    def through(cls, tell: Callable[[int, int], float]) -> Plane:
        """The plane through what `tell(blocks, rows)` says of 1 and 2 of either."""
        first, blocks, rows = tell(1, 1), tell(2, 1), tell(1, 2)
        return cls(first, blocks - first, rows - first, tell(2, 2) - blocks - rows + first)

    def at(self, blocks: int, rows: int) -> float:
        more, others = blocks - 1, rows - 1
        return self.one + self.block * more + self.row * others + self.both * more * others

    def beyond(self, shorter: Plane, ratio: float) -> Plane:
        """At a length `ratio` times that of this plane, which is twice that of `shorter`: linear in the length."""
        pairs = zip(self.parts, shorter.parts, strict=True)
        return Plane(*(now + (ratio - 1) * 2 * (now - before) for now, before in pairs))

    @property
    def parts(self) -> tuple[float, float, float, float]:
        return self.one, self.block, self.row, self.both


@dataclass(frozen=True)
class Passes:
    """Bytes of a pass of a recipe at one length, beyond weights and gradients.

    forward: the most that is held on the way to the loss. saved: what is kept for the way back, after the loss.
    logits: what the loss holds besides, of one chunk. backward: the most on the way back, with what was saved.
    step: the most that an optimizer's step holds besides its state. serving: the most of a pass without gradients, the
    new state included. by_learner: of `saved`, bytes of one row in one block, by the learner that keeps them.
    """

    length: int
    forward: Plane
    saved: Plane
    logits: Callable[[int], float]
    backward: Plane
    step: float
    serving: Plane
    by_learner: dict[str, int]

    def training(self, blocks: int, rows: int) -> float:
        """The most that a pass of training holds."""
        loss = self.saved.at(blocks, rows) + self.logits(rows * self.length)
        return max(self.forward.at(blocks, rows), loss, self.backward.at(blocks, rows))


def passes(length: int, run: Callable[[int], Passes]) -> Passes:
    """At any length; `run` gives those of small runs, `small_passes`."""
    shorter = min(length, LONGEST)
    found = run(shorter)
    if shorter == length:
        return found
    half, ratio = run(shorter // 2), length / shorter
    planes = {
        name: getattr(found, name).beyond(getattr(half, name), ratio)
        for name in ("forward", "saved", "backward", "serving")
    }
    by_learner = {name: round(size * ratio) for name, size in found.by_learner.items()}
    return Passes(length=length, logits=found.logits, step=found.step, by_learner=by_learner, **planes)


def small_passes(recipe: Recipe, vocab: int, length: int, settings: Settings, train: bool) -> Passes:
    """Runs small models of the recipe on this machine's device, forward and (with `train`) back."""
    told: dict[tuple[int, int], dict[str, float]] = {}
    by_learner: dict[str, int] = {}
    least = 1 + (recipe.model.depth.min if recipe.model.depth else 0)  # a router needs blocks to choose from
    with torch.random.fork_rng(devices=[]):
        for blocks in (1, 2):
            spec = recipe.model.model_copy(update={"blocks": least - 1 + blocks})
            torch.manual_seed(recipe.seed)
            model = build_model(spec, vocab, recipe.runtime.recompute).to(settings.device)
            trial = PassTimer(model, settings, length)
            for rows in (1, 2):
                told[blocks, rows] = {"serving": _serving(model, trial.batch(rows), settings)}
                if train:
                    told[blocks, rows] |= _training(model, trial.batch(rows), settings)
            if blocks == 1 and train:
                by_learner = saved_by_learner(model, trial.batch(1), settings)
                step = _step(model, trial.batch(1), recipe, settings)
            del model, trial

    def plane(name: str) -> Plane:
        found = Plane.through(lambda blocks, rows: told[blocks, rows].get(name, 0.0))
        back = least - 1  # the first of the measured sizes is of `least` blocks
        return Plane(found.one - back * found.block, found.block, found.row - back * found.both, found.both)

    chunk = max(1, CHUNK_BYTES // (4 * vocab))
    once = told[1, 1].get("logits", 0.0) / min(length, chunk)
    return Passes(
        length,
        plane("forward"),
        plane("saved"),
        lambda tokens: once * min(tokens, chunk),
        plane("backward"),
        step if train else 0.0,
        plane("serving"),
        by_learner,
    )


def _training(model: Model, batch: Batch, settings: Settings) -> dict[str, float]:
    """Of a pass over `batch`, gradients being there already: see `Passes`."""
    inputs, targets = batch.inputs.to(settings.device), batch.targets.to(settings.device)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    kind = settings.device.type
    kept: list[Any] = []
    with settings.context.activate():
        model.loss(inputs, targets)[0].objective.backward()  # loads and compiles what is not there yet
        if isinstance(model, LanguageModel):
            forward = held(lambda: kept.append(model.hidden(inputs)), kind)
            kept.clear()
        whole = held(lambda: kept.append(model.loss(inputs, targets)), kind)
        backward = held(lambda: kept[0][0].objective.backward(), kind)
    kept.clear()
    for parameter in model.parameters():
        parameter.grad = None
    if not isinstance(model, LanguageModel):
        forward = whole
    return {
        "forward": forward.most,
        "saved": whole.after,
        "logits": max(0, whole.most - max(whole.after, forward.most)) if forward is not whole else 0,
        "backward": whole.after + backward.most,
    }


@torch.no_grad()
def _serving(model: Model, batch: Batch, settings: Settings) -> float:
    """The most that a pass without gradients holds: a prompt that is taken in, or a text that is classified."""
    inputs = batch.inputs.to(settings.device)
    run = model.next_logits if isinstance(model, LanguageModel) else model
    with settings.context.activate():
        run(inputs[:, :8])
        return held(lambda: run(inputs), settings.device.type).most


def _step(model: Model, batch: Batch, recipe: Recipe, settings: Settings) -> float:
    """The most that an optimizer's step holds besides its state: one matrix at a time, so one block tells."""
    optimizer = Optimizer(model, recipe.train)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.0)
    most = held(lambda: optimizer.step(0.0), settings.device.type).most
    optimizer.zero_grad()
    return most


def saved_by_learner(model: Model, batch: Batch, settings: Settings) -> dict[str, int]:
    """Bytes that each learner of the first block keeps of one row for its backward pass; views of one storage count
    once, for the learner that kept it first. `rest` is what embedding, norms and head keep."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: set[int] = set()
    kept: list[Tensor] = []
    sizes: dict[str, int] = {}
    names: list[str] = ["rest"]

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (place := storage.data_ptr()) not in parameters and place not in seen:
            seen.add(place)
            kept.append(tensor)  # while it lives nobody else can have its place
            sizes[names[-1]] = sizes.get(names[-1], 0) + storage.nbytes()
        return tensor

    recompute, model.recompute = model.recompute, False
    try:
        with _named(model, names), torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):  # noqa: SIM117
            with settings.context.activate():
                loss, _ = model.loss(batch.inputs.to(settings.device), batch.targets.to(settings.device))
    finally:
        model.recompute = recompute
    del loss
    return sizes


@contextmanager
def _named(model: Model, names: list[str]) -> Iterator[None]:
    """While a learner of a block runs, its name is the last of `names`."""

    def begin(learner: nn.Module, given: Any) -> None:
        names.append(getattr(learner.config, "type", "learner"))

    def end(learner: nn.Module, given: Any, result: Any) -> None:
        names.pop()

    first: list[Learner[Any]] = list(model.blocks[0].learners)  # type: ignore[arg-type]
    hooks = [learner.register_forward_pre_hook(begin) for learner in first]
    hooks += [learner.register_forward_hook(end) for learner in first]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
