"""Everything that going on needs: after `save` and `restore` training continues as if it had never stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.data.labelled import Labelled, LabelledStream
from synthe_core.data.prepare import Packed
from synthe_core.data.stream import Stream
from synthe_core.errors import InputError
from synthe_core.hardware.probe import Hardware
from synthe_core.model.classifier import Model
from synthe_core.model.language_model import ModelState
from synthe_core.recipe.schema import Recipe
from synthe_core.state import from_tensors, to_tensors
from synthe_core.storage.checkpoint import Checkpoint, load_weights, save, weights
from synthe_core.storage.manifest import Manifest, kernels_used, machine, versions
from synthe_core.training.average import Average
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.position import Position
from synthe_core.training.settings import Settings


class Snapshot:
    """Model, optimizer, average, position, stream, carried state, random numbers, and the choices made on the way.

    labelled: the passages that an encoder reads; None for a language model.
    cursor:  of the stream after the last batch that was used.
    windows: how many windows a validation reads, once that is decided.
    metrics: the validation figures of the weights as they are now, empty where they were not validated.
    base:    whose weights the model has, frozen, under the adapter that is trained; None where all of it is.
    stage:   of training, counted from 1; which parts wait until later the model itself says (`without`).
    """

    def __init__(self, recipe: Recipe, packed: Packed, model: Model, settings: Settings) -> None:
        self.recipe, self.packed, self.model, self.settings = recipe, packed, model, settings
        spec = recipe.train
        self.optimizer = Optimizer(model, spec)
        self.average = Average(model, spec.ema) if spec.ema is not None else None
        self.position = Position()
        head = recipe.model.head
        self.labelled = None if head is None else Labelled.of(packed, head.classes)
        self.stream = (
            Stream(packed, spec.batch, recipe.data.sequence, recipe.seed, spec.carry)
            if self.labelled is None
            else LabelledStream(packed, self.labelled, spec.batch, recipe.seed)
        )
        self.cursor = self.stream.cursor()
        self.carried: ModelState | None = None
        self.windows: int | None = None
        self.metrics: dict[str, float] = {}
        self.parents: list[str] = []
        self.base: Checkpoint | None = None
        self.stage = 1

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within the block the model has the weights that count: the average where there is one."""
        if self.average is None:
            yield
            return
        with self.average.in_force():
            yield

    def finite(self) -> bool:
        """Whether the weights are numbers, and so worth saving."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters())

    def save(self, path: Path, hardware: Hardware) -> None:
        training: dict[str, dict[str, Tensor]] = {
            "optimizer": self.optimizer.tensors(),
            "random": _random_state(self.settings.device),
        }
        if self.average is not None:
            training["weights"] = weights(self.model)
        if self.carried is not None:
            training["carried"] = to_tensors(self.carried)
        state = {
            **self.position.to_json(),
            "cursor": self.cursor,
            "device": self.settings.device.type,
            "precision": self.settings.precision,
            "micro_batch": self.settings.micro_batch,
            "tuned_kernels": dict(self.settings.context.tuned_kernels),
            "windows": self.windows,
            "stage": self.stage,
            "text": self._text(),
        }
        manifest = Manifest(
            step=self.position.step,
            tokens=self.position.tokens,
            seconds=round(self.position.seconds, 3),
            parameters=sum(p.numel() for p in self.optimizer.parameters),
            metrics={name: value for name, value in self.metrics.items() if math.isfinite(value)},
            parents=self.parents,
            without=sorted(self.model.without),
            kernels=kernels_used(),
            versions=versions(),
            hardware=machine(hardware),
        )
        with self.evaluated():
            tensors = weights(self.model)
        save(
            path,
            recipe=self.recipe,
            vocab=self.model.vocab,
            tensors=tensors,
            manifest=manifest,
            tokenizer=self.packed.tokenizer,
            classes=() if self.labelled is None else self.labelled.classes,
            base=self.base,
            training=training,
            state=state,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes to where a checkpoint of the same run stood; InputError where text or sizes are others by now."""
        state = checkpoint.training_state()
        if state["text"] != self._text():
            raise InputError(
                "the training text is not what it was when the run began",
                "bring the old text back, or begin a new run from these weights",
            )
        saved = checkpoint.tensors if checkpoint.adapter is None else checkpoint.adapter.tensors
        raw = checkpoint.training_tensors("weights") if self.average is not None else saved
        load_weights(self.model, raw, checkpoint.path)
        if self.average is not None:
            self.average.load(saved)
        self.optimizer.load(checkpoint.training_tensors("optimizer"))
        carried = checkpoint.training_tensors("carried")
        if carried:
            template = self.model.init_state(self.recipe.train.batch)
            self.carried = from_tensors(template, {name: carried[name].clone() for name in carried})
        self.position = Position.from_json(state)
        self.cursor = state["cursor"]
        self.stream.seek(self.cursor)
        self.windows = state["windows"]
        self.stage = state.get("stage", 1)
        self.model.leave_out(checkpoint.manifest.without)
        self.metrics = checkpoint.manifest.metrics
        self.parents = checkpoint.manifest.parents
        _set_random_state(checkpoint.training_tensors("random"), self.settings.device)

    def _text(self) -> dict[str, Any]:
        """What the stream's order depends on: the tokenizer and how much text each source has."""
        text = {"tokenizer": self.packed.tokenizer.digest, "tokens": [s.train.tokens for s in self.packed.train]}
        return text if self.labelled is None else text | {"classes": list(self.labelled.classes)}


def _random_state(device: torch.device) -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def _set_random_state(tensors: Any, device: torch.device) -> None:
    torch.set_rng_state(tensors["cpu"].clone())
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"].clone(), device)
