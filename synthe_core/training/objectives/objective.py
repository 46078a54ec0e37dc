"""The contract of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from synthe_core.data.spec import DataSpec
from synthe_core.data.stream import Batch
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.events import Event
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import Loss, ModelState
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.objectives import ObjectiveConfig, Reads
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.distributed.engine import Engine
from synthe_core.training.distributed.ranks import SINGLE, Ranks


class ObjectiveContext(NamedTuple):
    """What an objective reads besides model and batch. An objective that needs more adds a field with a default.

    state: the recurrent state that the batch's rows continue from; None where they begin.
    """

    state: ModelState | None = None


class ObjectiveSetup(NamedTuple):
    """What an objective may use to get ready, once, before the first step of a run or of a resumed run.

    model:     as training begins, weights and adapter loaded; on the device.
    tokenizer: of the training data.
    context:   how passes run: device, precision, kernels.
    rows:      rows of a pass that fit into memory, of `sequence` tokens each.
    sequence:  the longest row.
    sources:   the training data, as a recipe names them.
    engine:    how passes run, by the processes that train together.
    """

    model: Any
    tokenizer: Tokenizer
    context: ExecutionContext
    rows: int
    sequence: int
    sources: Sequence[str] = ()
    engine: Engine | None = None


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
    gradient is that of the mean over the whole batch, however it was cut. A recipe chooses it by `objective`.

    Config:      the keys of `objective` in a recipe, an `ObjectiveConfig` whose `type` is the objective's name.
    reads:       the data that it trains on.
    of_encoders: the objective trains encoders, and otherwise language models.
    of_text:     `total` is the cross-entropy of the text, of which bits per byte are logged.
    carries:     the loss goes on from a recurrent state, which `train.carry` needs.
    divides:     validation is divided over processes, whose `TextScore`s are joined.
    whole_batch: `prepare` reads the rows of all processes, and returns those of this one.
    adapter_lr:  the peak learning rate of a new adapter of a published model, unless the recipe sets one: higher than
                 that of all weights (Biderman et al. 2024, LoRA Learns Less and Forgets Less).
    """

    Config: ClassVar[type[ObjectiveConfig]]
    reads: ClassVar[Reads] = "text"
    of_encoders: ClassVar[bool] = False
    of_text: ClassVar[bool] = True
    carries: ClassVar[bool] = True
    divides: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False
    adapter_lr: ClassVar[float] = 1e-4

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config  # type: ignore[call-arg]
        self.setup: ObjectiveSetup | None = None

    @property
    def origin(self) -> Checkpoint | None:
        """The checkpoint that `initialise` takes the first weights from; None without one. Its vocabulary is the
        model's."""
        return None

    def initialise(self, model: Any) -> None:  # noqa: B027
        """Sets the first weights of a run that begins without --init. By default they stay random."""

    def write_data(self, recipe: Recipe, base: Checkpoint | None) -> Generator[Event, None, DataSpec]:
        """The data to train on: the recipe's, unless the objective makes its own. base: the model under the adapter."""
        yield from ()
        return recipe.data

    def begin(self, setup: ObjectiveSetup) -> Iterator[Event]:
        """Gets ready before the first step: loads a teacher, copies a reference. By default it stores `setup`."""
        self.setup = setup
        return iter(())

    def reach(self, fraction: float) -> Iterator[Event]:
        """Called before every step with the fraction of the budget that is spent: an objective may go in stages."""
        return iter(())

    def learning_rate(self, fraction: float) -> float:
        """What the schedule's learning rate is multiplied by at that fraction of the budget."""
        return 1.0

    @property
    def runs_layers_alone(self) -> bool:
        """Whether the loss calls layers of the model outside of its blocks."""
        return False

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        return SINGLE if self.setup is None or self.setup.engine is None else self.setup.engine.ranks

    def prepare(self, model: Any, batch: Batch) -> Batch:
        """The batch with what the loss needs of all its rows at once in `extras`, computed without a gradient.

        A training step calls it once, before the batch is cut into micro-batches.
        """
        return batch

    @abstractmethod
    def __call__(self, model: Any, batch: Batch, ctx: ObjectiveContext) -> Loss:
        """The loss of `batch`, int64 [B, T] on the model's device.

        `total` is the sum over `scored` targets and carries the gradient; `state` is the recurrent state after the
        batch, if the model has one. The objective stores nothing of it between calls.
        """

    def count(self, batch: Batch) -> int:
        """The targets in `batch`: the sum of `scored` over its micro-batches, without a forward pass."""
        return int((batch.targets != IGNORED).sum())

    @abstractmethod
    def evaluate(self, model: Any, batches: Iterable[Any], context: ExecutionContext) -> Iterator[Score]:
        """The running score after each of the validation batches."""

    def tensors(self) -> Mapping[str, Tensor]:
        """What a resumed run needs and cannot compute again, such as a reference; saved with every checkpoint."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `tensors`; called before `begin` where a run is resumed and something was saved."""
        assert not tensors, f"{type(self).__name__} saves nothing"
