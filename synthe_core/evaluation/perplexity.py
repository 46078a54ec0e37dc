"""The verb `eval perplexity`: bits per byte by how much of the text before a token the model has read."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthe_core.data.shards import Split
from synthe_core.data.stream import Window
from synthe_core.errors import InputError
from synthe_core.evaluation.bits_per_byte import evaluate_bits_per_byte
from synthe_core.evaluation.held_out import held_out
from synthe_core.evaluation.opened_model import open_model
from synthe_core.evaluation.reading import MAX_STATE_BYTES
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.pathways import set_pathway_prior
from synthe_core.model.prefill import pass_limits
from synthe_core.model.session import Session

TOKENS = 4096  # of a pass


@dataclass(frozen=True)
class ContextScore:
    """One length of context, over the same text as every other length.

    context:       tokens after which the model begins from a fresh state.
    tokens, bytes: that were predicted, in windows of that length.
    bits_per_byte: over all of them.
    first, last:   the positions between which tokens were predicted for the next figure.
    here:          bits per byte at these positions only, in windows of the longest context.
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
    weights: str = "float32",
    memory: int | None = None,
    pathways: Path | None = None,
) -> Iterator[Event]:
    """Bits per byte of a text with each length of context, and by position; the last event is a Result.

    The text is cut into windows of the longest context, at most `tokens` in all, spread evenly over the text. Shorter
    contexts read the same tokens, cut again. By position: in windows of the longest context, the tokens between one
    length and the next, so that a model that uses distant text scores better with each length.

    contexts: tokens; by default powers of two from an eighth of the training length to four times it, as far as
    `tokens` allow; of a published model, as far as it was trained. weights: the format of the matrices, one of
    `inference.weights.WEIGHTS`. memory: the bytes that this process may take, None for no limit. pathways: a session
    with whose expert pathways windows begin.
    """
    opened = open_model(path, device, weights, memory)
    if pathways is not None:
        set_pathway_prior(opened.model, Session.load(pathways, opened.model))
    if opened.memory_summary:
        yield Notice(f"memory: {opened.memory_summary}")
    trained = opened.trained
    split = yield from held_out(opened.data, opened.tokenizer, sources)
    requested = sorted(set(contexts)) or _default_contexts(trained, tokens, opened.limit)
    lengths = _lengths(requested, split.tokens)
    if len(lengths) < len(requested):
        yield Notice(f"the text has {split.tokens:,} tokens: longer contexts are left out", "warning")
    if lengths[-1] > trained:
        how = "its window grows with them" if opened.grows else "its state does not grow"
        yield Notice(f"the model was trained on {trained:,} tokens; longer contexts run as they are: {how}")
    text = _read_text(split, lengths[-1], tokens, opened.tokenizer.widths)
    losses = yield from _token_losses(opened.model, text, lengths, opened.context)
    scores = _scores(losses, text.widths, lengths)
    yield Result({"trained": trained, "windows": len(text.tokens), "contexts": [asdict(each) for each in scores]})


def _default_contexts(trained: int, tokens: int, limit: int | None) -> list[int]:
    """At least one; the longest is no longer than `tokens`, nor than a published model's `limit`."""
    first = max(1, trained // 8)
    most = max(first, min(tokens, limit or tokens))
    return [length for n in (1, 2, 4, 8, 16, 32) if (length := first * n) <= most]


def _lengths(requested: Sequence[int], available: int) -> list[int]:
    """The requested contexts of which the text has a window; InputError if there is none, or if they do not divide the
    longest."""
    lengths = [length for length in requested if length < available]
    if not lengths:
        raise InputError(
            f"the text has {available:,} tokens, which is no window of {requested[0]:,}",
            "give more text, or a shorter --context",
        )
    for length in lengths:
        if lengths[-1] % length:
            raise InputError(
                f"context {length} does not divide {lengths[-1]}", "so the same text cannot be cut into both"
            )
    return lengths


@dataclass(frozen=True)
class Text:
    """Windows of the longest context: tokens int64 [N, T + 1], and the bytes of each target [N, T]."""

    tokens: Tensor
    widths: Tensor


def _read_text(split: Split, longest: int, tokens: int, widths: np.ndarray) -> Text:
    """At most about `tokens`, spread evenly over the split; InputError if they stand for no bytes."""
    count = (split.tokens - 1) // longest
    windows = np.arange(count)
    if count * longest > tokens:
        limit = max(1, tokens // longest)
        windows = np.arange(limit) * count // limit
    rows = split.gather(windows * longest, longest + 1)
    scale = split.bytes_in(rows[:, 1:]) / max(1, int(widths[rows[:, 1:]].sum()))
    text = Text(torch.from_numpy(rows), torch.from_numpy(widths[rows[:, 1:]] * scale))
    if not float(text.widths.sum()):
        raise InputError("the text has no bytes: every token of it is special", "give other text with --data")
    return text


def _token_losses(
    model: LanguageModel, text: Text, lengths: Sequence[int], context: ExecutionContext
) -> Generator[Event, None, dict[int, Tensor]]:
    """Nats of each target, float64 [N, T], in windows of each length."""
    losses: dict[int, Tensor] = {}
    chunk = pass_limits(model, TOKENS, MAX_STATE_BYTES).chunk
    started, done, total = time.monotonic(), 0, len(lengths) * text.widths.numel()
    for length in lengths:
        parts = []
        for score in evaluate_bits_per_byte(model, _windows(model, text, length), context, chunk=chunk):
            parts.append(score.token_losses.double().cpu())
            done += parts[-1].numel()
            elapsed = time.monotonic() - started
            yield Progress("reading", done, total, "tokens", elapsed * (total - done) / done)
        losses[length] = _rejoined(parts, -(-length // chunk)).reshape(text.widths.shape)
    return losses


def _windows(model: LanguageModel, text: Text, length: int) -> Iterator[Window]:
    """The text in windows of `length`, as many at a time as fit into a pass and into the memory for states."""
    most = pass_limits(model, TOKENS, MAX_STATE_BYTES)
    rows = max(1, min(most.tokens // min(length, most.chunk), most.states // max(1, model.state_bytes(length))))
    parts = (text.tokens[:, :-1], text.tokens[:, 1:], text.widths)
    for inputs, targets, widths in zip(*(each.reshape(-1, length).split(rows) for each in parts), strict=True):
        yield Window(inputs, targets, float(widths.sum()))


def _rejoined(parts: list[Tensor], chunks: int) -> Tensor:
    """[rows, length] of the chunks of each batch, one batch after another."""
    return torch.cat([torch.cat(parts[i : i + chunks], 1) for i in range(0, len(parts), chunks)])


def _scores(losses: dict[int, Tensor], widths: Tensor, lengths: Sequence[int]) -> list[ContextScore]:
    scores, first, volume = [], 0, float(widths.sum())
    for length in lengths:
        nats, count = float(losses[length].sum()), losses[length].numel()
        positions = slice(first, length)
        here = float(losses[lengths[-1]][:, positions].sum()) / math.log(2)
        scores.append(
            ContextScore(
                length,
                count,
                volume,
                nats / math.log(2) / volume,
                math.exp(nats / count),
                first,
                length,
                here / max(1e-9, float(widths[:, positions].sum())),
            )
        )
        first = length
    return scores
