"""The verb `eval perplexity`: bits per byte by how much of the text before a token the model has read."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.evaluation.held_out import held_out
from synthe_core.evaluation.lengths import trained_length
from synthe_core.evaluation.reading import STATES
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.inference.generate import PREFILL
from synthe_core.model.language_model import LanguageModel
from synthe_core.storage.checkpoint import Checkpoint

LOGITS = 1 << 24  # held at a time
TOKENS = 4096  # a pass


@dataclass(frozen=True)
class Reading:
    """One length of context, over the same text as every other length.

    context:       tokens after which the model begins afresh.
    tokens, bytes: that were predicted, in windows of that length.
    bits_per_byte: over all of them.
    first, last:   the places from which on, and up to which, tokens were predicted for the next figure.
    here:          bits per byte at these places only, in windows of the longest context.
    """

    context: int
    tokens: int
    bytes: float
    bits_per_byte: float
    perplexity: float
    first: int
    last: int
    here: float


def evaluate(
    path: Path,
    *,
    sources: Sequence[str] = (),
    contexts: Sequence[int] = (),
    tokens: int = 131_072,
    device: str = "auto",
) -> Iterator[Event]:
    """Bits per byte of a text with each length of context, and by position; the last event is a Result.

    The text is cut into windows of the longest context, spread evenly over it where there are more than `tokens` hold;
    shorter contexts are read over the very same tokens, cut again. By position: the windows of the longest context are
    looked at between one length and the next, so a model that uses far text gets better down the table.

    contexts: tokens; by default powers of two from an eighth of the training length to four times it.
    """
    checkpoint = Checkpoint.open(path)
    context = context_for_recipe(checkpoint.recipe, device)
    model = checkpoint.model(context.device).eval()
    trained, grows = trained_length(checkpoint)
    split = yield from held_out(checkpoint, sources)
    asked = sorted(set(contexts)) or [max(1, trained // 8) * n for n in (1, 2, 4, 8, 16, 32)]
    fitting = [each for each in asked if each < split.tokens]
    if not fitting:
        raise InputError(
            f"the text has {split.tokens:,} tokens, which is no window of {asked[0]:,}",
            "give more text, or a shorter --context",
        )
    if len(fitting) < len(asked):
        yield Notice(f"the text has {split.tokens:,} tokens: longer contexts are left out", "warning")
    longest = fitting[-1]
    if longest > trained:
        how = "its window grows with them" if grows else "its state does not grow"
        yield Notice(f"the model was trained on {trained:,} tokens; longer contexts run as they are: {how}")
    lengths = [each for each in fitting if longest % each == 0]
    if lengths != fitting:
        wrong = next(each for each in fitting if longest % each)
        raise InputError(f"context {wrong} does not divide {longest}", "so the same text cannot be cut into both")
    count = (split.tokens - 1) // longest
    chosen = np.arange(count)
    if count * longest > tokens:
        keep = max(1, tokens // longest)
        chosen = np.arange(keep) * count // keep
    rows = split.gather(chosen * longest, longest + 1)
    scale = split.bytes_in(rows[:, 1:]) / max(1, int(checkpoint.tokenizer().widths[rows[:, 1:]].sum()))
    widths = torch.from_numpy(checkpoint.tokenizer().widths[rows[:, 1:]] * scale)
    text = torch.from_numpy(rows)
    found: list[Reading] = []
    nats: dict[int, Tensor] = {}
    began, done, total = time.monotonic(), 0, len(lengths) * text[:, 1:].numel()
    for length in lengths:
        parts = []
        inputs = text[:, :-1].reshape(-1, length)
        targets = text[:, 1:].reshape(-1, length)
        batch = _rows(model, length)
        for first in range(0, len(inputs), batch):
            for part in _losses(model, context, inputs[first : first + batch], targets[first : first + batch]):
                parts.append(part)
                done += part.numel()
                elapsed = time.monotonic() - began
                yield Progress("reading", done, total, "tokens", elapsed * (total - done) / done)
        nats[length] = _rejoined(parts, length).reshape(len(text), longest)
    volume = float(widths.sum())
    if not volume:
        raise InputError("the text has no bytes: every token of it is special", "give other text with --data")
    before = 0
    for length in lengths:
        loss = float(nats[length].sum())
        here = slice(before, length)
        bits = float(nats[longest][:, here].sum()) / math.log(2) / max(1e-9, float(widths[:, here].sum()))
        size = nats[length].numel()
        found.append(
            Reading(length, size, volume, loss / math.log(2) / volume, math.exp(loss / size), before, length, bits)
        )
        before = length
    yield Result({"trained": trained, "windows": len(text), "contexts": [asdict(each) for each in found]})


def _rows(model: LanguageModel, length: int) -> int:
    return max(1, min(TOKENS // min(length, PREFILL), STATES // max(1, model.state_bytes(length))))


@torch.no_grad()
def _losses(model: LanguageModel, context: ExecutionContext, inputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """Nats of each target, float64 [B, t], piece by piece along time."""
    device, state = model.embedding.weight.device, None
    for first in range(0, inputs.shape[1], PREFILL):
        parts = []
        with context.activate():
            hidden, state, _ = model.hidden(inputs[:, first : first + PREFILL].to(device), state)
            wanted = targets[:, first : first + PREFILL].to(device)
            step = max(1, LOGITS // (hidden.shape[0] * model.vocab))
            for part, answers in zip(hidden.split(step, 1), wanted.split(step, 1), strict=True):
                logits = model.head(part).float()
                parts.append((logits.logsumexp(-1) - logits.gather(-1, answers[..., None])[..., 0]).double().cpu())
        yield torch.cat(parts, 1)


def _rejoined(parts: list[Tensor], length: int) -> Tensor:
    """[rows, length] of the pieces of each batch, one batch after another."""
    pieces = -(-length // PREFILL)
    return torch.cat([torch.cat(parts[i : i + pieces], 1) for i in range(0, len(parts), pieces)])
