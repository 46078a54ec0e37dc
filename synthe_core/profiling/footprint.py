"""The memory that training or serving a recipe takes, by part: from the model on `meta` and from small passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from synthe_core.adapters.lora_linear import trainable_parameters
from synthe_core.hardware.placement import choose_precision
from synthe_core.hardware.probe import Hardware
from synthe_core.model.classifier import Model
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.profiling.activations import Passes, passes, small_passes
from synthe_core.profiling.adapted import FrozenBase
from synthe_core.profiling.published_passes import published_passes
from synthe_core.recipe.accounting import vocabulary_of
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import Settings, settings_for


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak, by part; `peak` is their sum.

    rows:       sequences of a pass (training), or concurrent sequences (serving).
    length:     tokens of each.
    by_learner: activations of one row and block that are saved for the backward pass, by learner (training).
    """

    purpose: str
    rows: int
    length: int
    precision: str
    parts: dict[str, float]
    by_learner: dict[str, int]

    @property
    def peak(self) -> float:
        return sum(self.parts.values())


class Estimate:
    """Footprints of one recipe on one kind of device. Each length is measured once.

    vocab: of the tokenizer, which need not exist yet. checkpoint: of the model under an adapter, where the recipe is of
    one: `train.lora.quantize=as_stored` needs it.
    """

    def __init__(self, recipe: Recipe, hardware: Hardware, checkpoint: Checkpoint | None = None) -> None:
        self.recipe = recipe
        self.vocab = vocabulary_of(recipe)
        self.model: Model = recipe.meta_model(self.vocab)
        self.base = None if recipe.train.lora is None else FrozenBase(recipe, checkpoint)
        self.trained = self.model if self.base is None else self.base.adapted(recipe.meta_model(self.vocab), "meta")
        self.settings: Settings = settings_for(recipe, hardware)
        self.settings.precision = choose_precision(recipe.runtime.precision, self.settings.device.type, hardware).value
        self._passes: dict[tuple[int, bool], Passes] = {}
        self._runs: dict[tuple[int, bool], Passes] = {}

    def passes(self, length: int, train: bool) -> Passes:
        key = (length, train)
        if key not in self._passes:
            kind = self.settings if train else Settings(replace(self.settings.context, precision="float32"))
            self._passes[key] = passes(length, lambda short: self._run(short, kind, train))
        return self._passes[key]

    def _run(self, length: int, kind: Settings, train: bool) -> Passes:
        """The small passes of a length, measured once."""
        key = (length, train)
        if key not in self._runs:
            if isinstance(self.recipe.model, PublishedSpec):
                self._runs[key] = published_passes(self.recipe, self.vocab, length, train, self.base)
            else:
                self._runs[key] = small_passes(self.recipe, self.vocab, length, kind, train, self.base)
        return self._runs[key]

    @property
    def parameters(self) -> int:
        """Bytes of the weights and of buffers."""
        return _nbytes([*self.model.parameters(), *self.model.buffers()])

    def optimizer(self) -> int:
        """Bytes of the optimizer's state: two moments for AdamW's parameters, one momentum for Muon's."""
        optimizer = Optimizer(self.trained, self.recipe.train)
        moments = {"adamw": 2, "muon": 1}
        return sum(
            moments[part] * p.numel() * p.element_size()
            for part, each in optimizer.parts.items()
            for group in each.param_groups
            for p in group["params"]
        )

    def training(self, rows: int, length: int | None = None, batch: int | None = None) -> Footprint:
        """A step of training whose passes take `rows` sequences of `length` tokens, of a batch of `batch` rows.

        If one pass makes the step, gradients and activations do not peak together: the larger peak counts.
        """
        length = length or self.recipe.data.sequence
        batch = max(rows, batch or self.recipe.train.batch)
        passes = self.passes(length, True)
        trained = list(trainable_parameters(self.trained).values())
        gradients = _nbytes(trained)
        weights = _nbytes([*self.trained.parameters(), *self.trained.buffers()])
        parts = {"parameters": float(weights), "optimizer": float(self.optimizer())}
        if self.recipe.train.ema is not None:
            parts["average"] = float(weights if self.base is None else gradients)
        blocks = self.model.spec.blocks
        active = passes.training(blocks, rows)
        if batch > rows:
            parts |= {"gradients": float(gradients), "activations": max(active, passes.step)}
        elif active >= gradients + passes.step:
            parts |= {"gradients": 0.0, "activations": active}
        else:
            parts |= {"gradients": float(gradients), "activations": passes.step}
        parts["data"] = float(2 * 8 * batch * (length + 1) * 2)  # inputs and targets, of this step and the next
        return Footprint("training", rows, length, self.settings.precision, parts, passes.by_learner)

    def serving(self, rows: int, length: int | None = None) -> Footprint:
        """`rows` sequences of `length` tokens each: their prefill in one pass, in float32, and decoding."""
        length = length or self.recipe.data.sequence
        state = float(rows * self.model.state_bytes(length)) if self.recipe.model.head is None else 0.0
        working = self.passes(length, False).serving.at(self.model.spec.blocks, rows)
        parts = {"parameters": float(self.parameters), "state": state, "activations": max(0.0, working - state)}
        return Footprint("serving", rows, length, "float32", parts, {})


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
