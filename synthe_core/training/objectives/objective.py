"""The contract of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

from synthe_core.data.stream import Batch
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import Loss, ModelState
from synthe_core.ops.cross_entropy import IGNORED


class ObjectiveContext(NamedTuple):
    """What an objective reads besides model and batch. An objective that needs more adds a field with a default.

    state: the recurrent state that the batch's rows continue from; None where they begin.
    """

    state: ModelState | None = None


class Score(Protocol):
    """Sums over validation batches."""

    @property
    def rows(self) -> int:
        """Windows or passages added so far."""
        ...

    def values(self) -> dict[str, float]:
        """The figures of all batches added so far. "loss" decides which checkpoint is the best."""
        ...


class Objective(ABC):
    """A differentiable loss of a batch, and how the model is scored on validation text.

    To add one: a subclass in a file of its own, and a line in the table `OBJECTIVES`. `train_step` does the rest: it
    cuts the batch into micro-batches, calls the objective on each inside the execution context (kernels, autocast),
    and back-propagates `total / count(batch) + sum(auxiliary) * scored / count(batch)`, so that the accumulated
    gradient is that of the mean over the whole batch, however it was cut. A recipe chooses it by `train.objective`.

    of_encoders: the objective trains encoders, and otherwise language models.
    """

    of_encoders: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, model: Any, batch: Batch, ctx: ObjectiveContext) -> Loss:
        """The loss of `batch`, int64 [B, T] on the model's device.

        `total` is the sum over `scored` targets and carries the gradient; `state` is the recurrent state after the
        batch, if the model has one. The objective keeps nothing between calls.
        """

    def count(self, batch: Batch) -> int:
        """The targets in `batch`: the sum of `scored` over its micro-batches, without a forward pass."""
        return int((batch.targets != IGNORED).sum())

    @abstractmethod
    def evaluate(self, model: Any, batches: Iterable[Any], context: ExecutionContext) -> Iterator[Score]:
        """The running score after each of the validation batches."""
