"""How well a model predicts text, or the class of text, that it has not been trained on."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.data.stream import Batch, Window
from synthe_core.model.classifier import Classifier
from synthe_core.model.language_model import LanguageModel
from synthe_core.training.settings import Settings


class Score:
    """Adds up windows of text, each read from a fresh state."""

    def __init__(self) -> None:
        self._nats: list[Tensor] = []
        self._tokens, self._bytes = 0, 0.0

    @torch.no_grad()
    def add(self, model: LanguageModel, window: Window, settings: Settings) -> None:
        with settings.in_force():
            loss, _ = model.loss(window.inputs.to(settings.device), window.targets.to(settings.device))
        self._nats.append(loss.each.sum())
        self._tokens += window.targets.numel()
        self._bytes += window.bytes

    def values(self) -> dict[str, float]:
        """Loss in nats per token, perplexity = exp(loss), and bits per byte = nats / (ln 2 x bytes scored).

        Bits per byte compares between tokenizers: it is about the text that the scored tokens stand for.
        """
        nats = math.fsum(map(float, self._nats))
        loss = nats / self._tokens
        return {
            "loss": loss,
            "bits_per_byte": nats / math.log(2) / self._bytes if self._bytes else math.nan,
            "perplexity": math.exp(min(loss, 700.0)),
        }


class ClassScore:
    """Adds up batches of labelled passages."""

    def __init__(self) -> None:
        self._nats: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._labels: list[Tensor] = []

    @torch.no_grad()
    def add(self, model: Classifier, batch: Batch, settings: Settings) -> None:
        labels = batch.targets.amax(1).to(settings.device)
        with settings.in_force():
            lengths = None if batch.lengths is None else batch.lengths.to(settings.device)
            logits = model(batch.inputs.to(settings.device), lengths).float()
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
        }
