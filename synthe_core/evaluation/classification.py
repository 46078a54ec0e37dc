"""Loss and accuracy of an encoder on labelled passages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.evaluation.accumulators import FlopCounter, WeightedMeans
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.classifier import Classifier
from synthe_core.model.language_model import measures


class ClassificationScore:
    """Sums over batches of labelled passages."""

    def __init__(self) -> None:
        self.rows = 0
        self._nats: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._measures, self._flops = WeightedMeans(), FlopCounter()

    @torch.no_grad()
    def add(self, model: Classifier, batch: Batch, context: ExecutionContext) -> None:
        labels = batch.targets.amax(1).to(context.device)
        with context.activate():
            lengths = None if batch.lengths is None else batch.lengths.to(context.device)
            logits, ctx = model.read(batch.inputs.to(context.device), lengths)
        logits = logits.float()
        self.rows += len(labels)
        self._measures.add(measures(ctx), batch.tokens)
        self._flops.add(batch.tokens, model.flops(batch.inputs.shape[1]), sum(ctx.skipped))
        self._nats.append(F.cross_entropy(logits, labels, reduction="none"))
        self._correct.append(logits.argmax(-1) == labels)
        self._labels.append(labels)

    def values(self) -> dict[str, float]:
        """Loss in nats per passage, accuracy, and `chance`, the accuracy of always predicting the most frequent class;
        the learners' measures and the floating-point operations per token."""
        nats, correct, labels = map(torch.cat, (self._nats, self._correct, self._labels))
        return {
            "loss": float(nats.double().mean()),
            "accuracy": float(correct.double().mean()),
            "chance": float(labels.bincount().max()) / len(labels),
            **{name: float(value) for name, value in self._measures.values().items()},
            **self._flops.values(),
        }


def evaluate_classification(
    model: Classifier, batches: Iterable[Batch], context: ExecutionContext
) -> Iterator[ClassificationScore]:
    """Reads each batch of passages; yields the running score after each."""
    score = ClassificationScore()
    for batch in batches:
        score.add(model, batch, context)
        yield score
