"""Everything that a training step reads and changes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from synthe_core.budget import Budget
from synthe_core.model.classifier import Model
from synthe_core.model.language_model import ModelState
from synthe_core.recipe.schema import TrainSpec
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.distributed.engine import Engine
from synthe_core.training.objectives.objective import Objective
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import Settings
from synthe_core.training.stages import Frozen
from synthe_core.training.weight_average import WeightAverage


@dataclass
class Clock:
    """Wall-clock seconds of training, added up over the processes that trained the run.

    Time runs from the first step of a process to its end, through validation, sampling and saving. Reading text,
    compiling and measuring before it do not count.
    """

    before: float = 0.0
    started: float | None = None

    def start(self) -> None:
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before if self.started is None else self.before + time.monotonic() - self.started


class Counters(NamedTuple):
    """How much training was done: optimizer steps, tokens read in them, seconds, and how often all data were read."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    epochs: float = 0.0

    def fraction(self, budget: Budget, reserve: float = 0.0) -> float:
        """The fraction of the budget that is spent, at most 1. Of a budget of time, `reserve` seconds are set aside."""
        if budget.unit == "seconds":
            return min(1.0, self.seconds / max(budget.amount - reserve, 1e-3))
        return min(1.0, budget.fraction(**self._asdict()))

    def reached(self, interval: Budget, since: Counters) -> bool:
        """Whether an `interval` has passed since earlier counters."""
        passed = (now - then for now, then in zip(self, since, strict=True))
        return interval.fraction(**Counters(*passed)._asdict()) >= 1  # type: ignore[arg-type]


@dataclass
class TrainState:
    """A model in training: what `train_step` reads and changes, and a checkpoint saves and restores.

    fraction:           of the budget that is spent, in [0, 1]: what the learning rate depends on.
    step, tokens:       optimizer steps, and the tokens read in them. Skipped steps count in neither.
    average:            the running average of the weights, which is evaluated and saved in place of them.
    recurrent_state:    what the next batch's rows continue from; None unless state is carried from batch to batch.
    stage:              of training, counted from 1.
    sequence:           tokens that rows are cut into; None for whole rows.
    frozen:             what does not change in this phase of training.
    validations:        how many are done.
    validation_windows: how many windows or passages a validation reads; None until that is decided.
    metrics:            the validation figures of the weights as they are; empty after another step.
    cursor:             the position of the training data after the last batch that was used.
    parents:            the checkpoints that the first weights come from.
    context:            the longest text of the published model that they come from; None for none.
    base:               the checkpoint under the adapter that is trained, whose weights are frozen; None without one.
    epoch:              sequences of all training data; None in a trial, whose batches are all new.
    engine:             how passes run, by one process or several; this one alone by default.

    Random numbers come from torch's global generators, which a checkpoint saves too.
    """

    model: Model
    objective: Objective
    optimizer: Optimizer
    config: TrainSpec
    settings: Settings
    average: WeightAverage | None = None
    clock: Clock = field(default_factory=Clock)
    fraction: float = 0.0
    step: int = 0
    tokens: int = 0
    recurrent_state: ModelState | None = None
    stage: int = 1
    sequence: int | None = None
    frozen: Frozen = field(default_factory=Frozen)
    validations: int = 0
    validation_windows: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    cursor: dict[str, Any] = field(default_factory=dict)
    parents: list[str] = field(default_factory=list)
    context: int | None = None
    base: Checkpoint | None = None
    epoch: int | None = None
    engine: Engine = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.engine is None:
            self.engine = Engine(self.model)

    @property
    def counters(self) -> Counters:
        epochs = self.step * self.config.batch / self.epoch if self.epoch else 0.0
        return Counters(self.step, self.tokens, self.clock.seconds, epochs)
