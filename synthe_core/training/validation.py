"""How well a model predicts text, or the class of text, that it has not been trained on."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.data.stream import Batch, Window
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.classifier import Classifier
from synthe_core.model.language_model import LanguageModel, measures
from synthe_core.training.gradients import Means
from synthe_core.training.meter import Cost


class Score:
    """Adds up windows of text, each read from a fresh state."""

    def __init__(self) -> None:
        self._nats: list[Tensor] = []
        self._tokens, self._bytes = 0, 0.0
        self._measures, self._cost = Means(), Cost()

    @torch.no_grad()
    def add(self, model: LanguageModel, window: Window, context: ExecutionContext) -> None:
        with context.activate():
            loss, _ = model.loss(window.inputs.to(context.device), window.targets.to(context.device))
        self._nats.append(loss.each.sum())
        tokens = window.targets.numel()
        self._tokens += tokens
        self._measures.add(loss.measures, tokens)
        self._cost.add(tokens, model.flops(window.inputs.shape[1]), loss.skipped)
        self._bytes += window.bytes

    def values(self) -> dict[str, float]:
        """Loss in nats per token, perplexity = exp(loss), and bits per byte = nats / (ln 2 x bytes scored); what
        learners measured; and the operations a token took, as executed and as if none had been skipped.

        Bits per byte compares between tokenizers: it is about the text that the scored tokens stand for.
        """
        nats = math.fsum(map(float, self._nats))
        loss = nats / self._tokens
        return {
            "loss": loss,
            "bits_per_byte": nats / math.log(2) / self._bytes if self._bytes else math.nan,
            "perplexity": math.exp(min(loss, 700.0)),
            **{name: float(value) for name, value in self._measures.values().items()},
            **self._cost.values(),
        }


class ClassScore:
    """Adds up batches of labelled passages."""

    def __init__(self) -> None:
        self._nats: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._measures, self._cost = Means(), Cost()

    @torch.no_grad()
    def add(self, model: Classifier, batch: Batch, context: ExecutionContext) -> None:
        labels = batch.targets.amax(1).to(context.device)
        with context.activate():
            lengths = None if batch.lengths is None else batch.lengths.to(context.device)
            logits, ctx = model.read(batch.inputs.to(context.device), lengths)
        logits = logits.float()
        self._measures.add(measures(ctx), batch.tokens)
        self._cost.add(batch.tokens, model.flops(batch.inputs.shape[1]), sum(ctx.skipped))
        self._nats.append(F.cross_entropy(logits, labels, reduction="none"))
        self._hits.append(logits.argmax(-1) == labels)
        self._labels.append(labels)

    def values(self) -> dict[str, float]:
        """Loss in nats per passage, accuracy, and the accuracy of always naming the most frequent class."""
        nats, hits, labels = map(torch.cat, (self._nats, self._hits, self._labels))
        return {
            "loss": float(nats.double().mean()),
            "accuracy": float(hits.double().mean()),
            "chance": float(labels.bincount().max()) / len(labels),
            **{name: float(value) for name, value in self._measures.values().items()},
            **self._cost.values(),
        }
