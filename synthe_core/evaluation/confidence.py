"""The verb `eval confidence`: whether a language model knows when its next token is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthe_core.data.stream import Window, windows
from synthe_core.errors import InputError
from synthe_core.evaluation import confidence_chart
from synthe_core.evaluation.calibration import ScoreQuality, area, auroc, calibration_error, reliability, risk_coverage
from synthe_core.evaluation.held_out import held_out
from synthe_core.evaluation.opened_model import open_model
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.model.head_chunks import logits_in_chunks, places_per_chunk
from synthe_core.model.language_model import LanguageModel
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.logprobs import max_logprob
from synthe_core.storage.atomic import write_file

BASELINE, HEAD = "max-softmax", "calibrated head"
DRAWN = 200  # points of a curve
FORMS = (".html", ".svg")


def score_quality(name: str, score: np.ndarray, right: np.ndarray) -> ScoreQuality:
    """The quality of a score [N] as learners publish it: except for probabilities, higher is less confident."""
    probability = name in (BASELINE, HEAD, "confidence")
    bins = reliability(score, right)
    confidence = score if probability else -score
    risk = risk_coverage(confidence, right)
    chosen = np.unique(np.linspace(0, len(risk) - 1, DRAWN).astype(int))
    curve = [((n + 1) / len(risk), float(risk[n])) for n in chosen.tolist()]
    half = float(risk[max(0, len(risk) // 2 - 1)])
    ece = calibration_error(bins) if probability else None
    return ScoreQuality(name, ece, auroc(confidence, right), area(risk), half, bins, curve)


def evaluate(
    path: Path, *, sources: Sequence[str] = (), tokens: int = 131_072, device: str = "auto", plot: Path | None = None
) -> Iterator[Event]:
    """Measures every confidence score of a checkpoint on held-out text; the last event is a Result.

    The scores are the probability of the most likely token, that of the calibrated head if the model has one, and each
    signal that its learners publish. A place is right if its most likely token is the one that follows. Windows of the
    recipe's length, each read from a fresh state, are spread evenly over the text: at most `tokens` tokens of it.

    sources: text to read instead of the recipe's own validation text, as a recipe names it.
    plot:    where to draw the reliability diagram and the risk-coverage curves, .html or .svg.
    """
    if plot is not None and plot.suffix not in FORMS:
        raise InputError(f"cannot draw into {plot}", f"name a file that ends in {' or '.join(FORMS)}")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise InputError(f"no such folder: {plot.parent}", "make it first")
    opened = open_model(path, device)
    model = opened.model
    if model.confidence is None:
        yield Notice("the model has no calibrated head; a recipe asks for one with model.confidence={}")
    split = yield from held_out(opened.data, opened.tokenizer, sources)
    length = min(opened.trained if opened.data is None else opened.data.sequence, split.tokens - 1)
    count = min(max(1, tokens // length), (split.tokens - 1) // length)
    scores: dict[str, list[np.ndarray]] = {}
    rights, done = [], 0
    for window in windows(split, length, count, places_per_chunk(model, length)):
        with opened.context.activate():
            values, right = read_scores(model, window)
        for name, value in values.items():
            scores.setdefault(name, []).append(value.flatten().double().cpu().numpy())
        rights.append(right.flatten().cpu().numpy())
        done += window.inputs.numel()
        yield Progress("reading", done, count * length, "tokens")
    truth = np.concatenate(rights)
    qualities = [score_quality(name, np.concatenate(parts), truth) for name, parts in scores.items()]
    ideal = area(risk_coverage(truth.astype(float), truth))
    summary = {"tokens": len(truth), "accuracy": float(truth.mean()), "ideal_aurc": ideal}
    if plot is not None:
        draw = confidence_chart.page if plot.suffix == ".html" else confidence_chart.picture
        write_file(plot, draw(f"{opened.name}: does it know when it is right?", summary, qualities))
    scored = [asdict(each) | {"bins": [bin._asdict() for bin in each.bins]} for each in qualities]
    yield Result({**summary, "scores": scored}, plot)


@torch.no_grad()
def read_scores(model: LanguageModel, window: Window) -> tuple[dict[str, Tensor], Tensor]:
    """Every score [B, T] by name, and whether the most likely token is right, bool [B, T]."""
    device = next(model.parameters()).device
    hidden, _, ctx = model.hidden(window.inputs.to(device))
    logprobs, right = [], []
    for logits, targets in logits_in_chunks(model, hidden, window.targets.to(device)):
        best = max_logprob(logits)
        logprobs.append(best.logprob)
        right.append(best.token == targets)
    logprob = torch.cat(logprobs, 1)
    scores = {BASELINE: logprob.exp()}
    if model.confidence is not None and "confidence" not in model.without:
        scores[HEAD] = sigmoid(model.confidence(hidden, ctx.signals, logprob))
    return scores | {name: ctx.signals[name] for name in model.signals}, torch.cat(right, 1)
