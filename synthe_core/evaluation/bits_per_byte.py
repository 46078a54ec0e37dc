"""Bits per byte of a language model on text: the one reading loop of validation, perplexity, merging and packing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from synthe_core.data.stream import Window
from synthe_core.evaluation.accumulators import FlopCounter, WeightedMeans
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel, Loss


class TextScore:
    """Sums over windows of text.

    rows, tokens:  windows and targets read so far.
    token_losses:  nats of each target that was read last, [B, t].
    """

    def __init__(self) -> None:
        self.rows, self.tokens = 0, 0
        self.token_losses = torch.empty(0, 0)
        self._bytes = 0.0
        self._nats: list[Tensor] = []
        self._measures, self._flops = WeightedMeans(), FlopCounter()

    def begin(self, window: Window) -> None:
        """Counts windows [B, T] that are read next."""
        self.rows += window.targets.shape[0]
        self._bytes += window.bytes

    def add(self, loss: Loss, flops: float) -> None:
        """Adds a pass over some of their tokens, at `flops` per token if nothing is skipped."""
        self.token_losses = loss.each
        self._nats.append(loss.each.sum())
        tokens = loss.each.numel()
        self.tokens += tokens
        self._measures.add(loss.measures, tokens)
        self._flops.add(tokens, flops, loss.skipped)

    def sums(self) -> dict[str, Any]:
        """All that `values` reads, in plain numbers."""
        means = {name: (float(total), weight) for name, (total, weight) in self._measures.sums().items()}
        counts = {"rows": self.rows, "tokens": self.tokens, "bytes": self._bytes}
        return counts | {"nats": list(map(float, self._nats)), "measures": means, "flops": self._flops.sums()}

    @staticmethod
    def joined(parts: Iterable[Mapping[str, Any]]) -> TextScore:
        """The score of all windows of which others have read some each. The sum of nats is exact in any order."""
        score = TextScore()
        for part in parts:
            score.rows += part["rows"]
            score.tokens += part["tokens"]
            score._bytes += part["bytes"]
            score._nats += map(torch.tensor, part["nats"])
            for name, (total, weight) in part["measures"].items():
                score._measures.add({name: torch.tensor(total / max(weight, 1e-9))}, weight)
            flops = part["flops"]
            if flops["tokens"]:
                score._flops.add(int(flops["tokens"]), flops["dense"] / flops["tokens"], flops["skipped"])
        return score

    @property
    def bits_per_byte(self) -> float:
        """nats / (ln 2 x bytes of text that the targets stand for), which compares across tokenizers; NaN without
        bytes."""
        return math.fsum(map(float, self._nats)) / math.log(2) / self._bytes if self._bytes else math.nan

    def values(self) -> dict[str, float]:
        """Loss in nats per token, bits per byte, perplexity = exp(loss), the learners' measures, and the floating-point
        operations per token, as executed and as if none had been skipped."""
        loss = math.fsum(map(float, self._nats)) / self.tokens
        return {
            "loss": loss,
            "bits_per_byte": self.bits_per_byte,
            "perplexity": math.exp(min(loss, 700.0)),
            **{name: float(value) for name, value in self._measures.values().items()},
            **self._flops.values(),
        }


def evaluate_bits_per_byte(
    model: LanguageModel, windows: Iterable[Window], context: ExecutionContext, chunk: int | None = None
) -> Iterator[TextScore]:
    """Reads each batch of windows, int64 [B, T], from a fresh state; yields the running score after each pass.

    chunk: tokens of a pass; the state carries over to the next pass of the same windows. By default a pass reads whole
    windows.
    """
    score = TextScore()
    for window in windows:
        score.begin(window)
        state, size = None, chunk or window.inputs.shape[1]
        for inputs, targets in zip(window.inputs.split(size, 1), window.targets.split(size, 1), strict=True):
            with torch.no_grad(), context.activate():
                loss, state = model.loss(inputs.to(context.device), targets.to(context.device), state)
            score.add(loss, model.flops(inputs.shape[1]))
            yield score
