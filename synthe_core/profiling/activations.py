"""Bytes of activations of a pass, beside weights and gradients: measured on a small model, linear from there.

Blocks are alike and rows are independent, so the bytes of a pass are linear in both. Passes with one and two blocks and
one and two rows, at the given length, determine them. Only the loss is not linear: it computes its logits in chunks of
a fixed size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.adapters.lora_linear import trainable_parameters
from synthe_core.data.stream import Batch
from synthe_core.layers.learner import Learner
from synthe_core.model.classifier import Model, build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.ops.cross_entropy import chunk_bytes
from synthe_core.profiling.adapted import FrozenBase
from synthe_core.profiling.allocations import measure_allocations
from synthe_core.recipe.schema import Recipe
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import Settings
from synthe_core.training.tuning import PassTimer

MAX_MEASURED_LENGTH = 1024  # tokens; longer sequences are extrapolated from this length and half of it


@dataclass(frozen=True)
class Plane:
    """bytes = one + block · (blocks - 1) + row · (rows - 1) + both · (blocks - 1) (rows - 1)."""

    one: float
    block: float
    row: float
    both: float

    @classmethod
    def fit(cls, size: Callable[[int, int], float]) -> Plane:
        """The plane through `size(blocks, rows)` for 1 and 2 blocks and rows."""
        first, blocks, rows = size(1, 1), size(2, 1), size(1, 2)
        return cls(first, blocks - first, rows - first, size(2, 2) - blocks - rows + first)

    def at(self, blocks: int, rows: int) -> float:
        more_blocks, more_rows = blocks - 1, rows - 1
        return self.one + self.block * more_blocks + self.row * more_rows + self.both * more_blocks * more_rows

    def extrapolate(self, half: Plane, ratio: float) -> Plane:
        """The plane of sequences `ratio` times as long, given that of sequences half as long: linear in the length."""
        pairs = zip(self.parts, half.parts, strict=True)
        return Plane(*(now + (ratio - 1) * 2 * (now - before) for now, before in pairs))

    @property
    def parts(self) -> tuple[float, float, float, float]:
        return self.one, self.block, self.row, self.both


@dataclass(frozen=True)
class Passes:
    """Bytes of a pass of a recipe at one length, beyond weights and gradients.

    forward:    the peak of the forward pass before the loss.
    saved:      what the forward pass and the loss save for the backward pass.
    logits:     the bytes of the loss's logits for a number of tokens, of one chunk at most.
    backward:   the peak of the backward pass, with what was saved.
    step:       the peak of an optimizer step beside the optimizer's state.
    serving:    the peak of a pass without gradients, with the new state.
    by_learner: of `saved`, the bytes of one row in one block, by learner.
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
        """The peak of a training pass."""
        loss = self.saved.at(blocks, rows) + self.logits(rows * self.length)
        return max(self.forward.at(blocks, rows), loss, self.backward.at(blocks, rows))


def passes(length: int, run: Callable[[int], Passes]) -> Passes:
    """Passes at any length. `run` measures short ones (see `small_passes`)."""
    shorter = min(length, MAX_MEASURED_LENGTH)
    measured = run(shorter)
    if shorter == length:
        return measured
    half, ratio = run(shorter // 2), length / shorter
    planes = {
        name: getattr(measured, name).extrapolate(getattr(half, name), ratio)
        for name in ("forward", "saved", "backward", "serving")
    }
    by_learner = {name: round(size * ratio) for name, size in measured.by_learner.items()}
    return Passes(length=length, logits=measured.logits, step=measured.step, by_learner=by_learner, **planes)


def small_passes(
    recipe: Recipe, vocab: int, length: int, settings: Settings, train: bool, base: FrozenBase | None = None
) -> Passes:
    """Measures passes of models with one and two blocks on this machine's device; backward too with `train`. base: how
    the model under the adapter of `train.lora` is held, in training."""
    sizes: dict[tuple[int, int], dict[str, float]] = {}
    by_learner: dict[str, int] = {}
    min_blocks = 1 + (recipe.model.depth.min if recipe.model.depth else 0)  # a router needs a block to skip
    with torch.random.fork_rng(devices=[]):
        for blocks in (1, 2):
            spec = recipe.model.model_copy(update={"blocks": min_blocks - 1 + blocks})
            torch.manual_seed(recipe.seed)
            if train and base is not None:
                model = base.build(spec, vocab, settings.device)
            else:
                model = build_model(spec, vocab, recipe.runtime.recompute).to(settings.device)
            timer = PassTimer(model, settings, length)
            for rows in (1, 2):
                sizes[blocks, rows] = {"serving": _serving(model, timer.batch(rows), settings)}
                if train:
                    sizes[blocks, rows] |= _training(model, timer.batch(rows), settings)
            if blocks == 1 and train:
                by_learner = saved_by_learner(model, timer.batch(1), settings)
                step = _step(model, timer.batch(1), recipe, settings)
            del model, timer

    def plane(name: str) -> Plane:
        fit = Plane.fit(lambda blocks, rows: sizes[blocks, rows].get(name, 0.0))
        extra = min_blocks - 1  # the smallest measured model has `min_blocks` blocks
        return Plane(fit.one - extra * fit.block, fit.block, fit.row - extra * fit.both, fit.both)

    chunk = max(1, chunk_bytes(settings.device.type) // (4 * vocab))
    per_token = sizes[1, 1].get("logits", 0.0) / min(length, chunk)
    return Passes(
        length,
        plane("forward"),
        plane("saved"),
        lambda tokens: per_token * min(tokens, chunk),
        plane("backward"),
        step if train else 0.0,
        plane("serving"),
        by_learner,
    )


def _training(model: Model, batch: Batch, settings: Settings) -> dict[str, float]:
    """The bytes of a training pass over `batch`, with gradients allocated before: see `Passes`."""
    inputs, targets = batch.inputs.to(settings.device), batch.targets.to(settings.device)
    for parameter in trainable_parameters(model).values():
        parameter.grad = torch.zeros_like(parameter)
    kind = settings.device.type
    results: list[Any] = []
    with settings.context.activate():
        model.loss(inputs, targets)[0].objective.backward()  # compiles kernels
        if isinstance(model, LanguageModel):
            forward = measure_allocations(lambda: results.append(model.hidden(inputs)), kind)
            results.clear()
        whole = measure_allocations(lambda: results.append(model.loss(inputs, targets)), kind)
        backward = measure_allocations(lambda: results[0][0].objective.backward(), kind)
    results.clear()
    for parameter in model.parameters():
        parameter.grad = None
    if not isinstance(model, LanguageModel):
        forward = whole
    return {
        "forward": forward.peak,
        "saved": whole.retained,
        "logits": max(0, whole.peak - max(whole.retained, forward.peak)) if forward is not whole else 0,
        "backward": whole.retained + backward.peak,
    }


@torch.no_grad()
def _serving(model: Model, batch: Batch, settings: Settings) -> float:
    """The peak of a pass without gradients: the prefill of a prompt, or the classification of a text."""
    inputs = batch.inputs.to(settings.device)
    run = model.next_logits if isinstance(model, LanguageModel) else model
    with settings.context.activate():
        run(inputs[:, :8])
        return measure_allocations(lambda: run(inputs), settings.device.type).peak


def _step(model: Model, batch: Batch, recipe: Recipe, settings: Settings) -> float:
    """The peak of an optimizer step beside its state. It works on one matrix at a time, so one block is enough."""
    optimizer = Optimizer(model, recipe.train)
    for parameter in optimizer.parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.0)
    peak = measure_allocations(lambda: optimizer.step(0.0), settings.device.type).peak
    optimizer.zero_grad()
    return peak


def saved_by_learner(model: Model, batch: Batch, settings: Settings) -> dict[str, int]:
    """Bytes per row that each learner of the first block saves for its backward pass. Views of one storage count once,
    for the learner that saved it first. "rest" is what embedding, norms and head save."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: set[int] = set()
    alive: list[Tensor] = []
    sizes: dict[str, int] = {}
    names: list[str] = ["rest"]

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (address := storage.data_ptr()) not in parameters and address not in seen:
            seen.add(address)
            alive.append(tensor)  # so that its address is not used again
            sizes[names[-1]] = sizes.get(names[-1], 0) + storage.nbytes()
        return tensor

    recompute, model.recompute = model.recompute, False
    try:
        with _current_learner(model, names), torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):  # noqa: SIM117
            with settings.context.activate():
                loss, _ = model.loss(batch.inputs.to(settings.device), batch.targets.to(settings.device))
    finally:
        model.recompute = recompute
    del loss
    return sizes


@contextmanager
def _current_learner(model: Model, names: list[str]) -> Iterator[None]:
    """Within the block, `names[-1]` is the name of the first block's learner that runs."""

    def begin(learner: nn.Module, args: Any) -> None:
        names.append(getattr(learner.config, "type", "learner"))

    def end(learner: nn.Module, args: Any, result: Any) -> None:
        names.pop()

    first: list[Learner[Any]] = list(model.blocks[0].learners)  # type: ignore[arg-type]
    hooks = [learner.register_forward_pre_hook(begin) for learner in first]
    hooks += [learner.register_forward_hook(end) for learner in first]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
