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
from synthe_core.evaluation.calibration import Judged, area, auroc, calibration_error, reliability, risk_coverage
from synthe_core.evaluation.held_out import held_out
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.parts import without_parts
from synthe_core.storage.atomic import write_file
from synthe_core.storage.checkpoint import Checkpoint

LOGITS = 1 << 24  # held at a time
BASELINE, HEAD = "max-softmax", "calibrated head"
DRAWN = 200  # points of a curve
FORMS = (".html", ".svg")


def judge(name: str, score: np.ndarray, right: np.ndarray) -> Judged:
    """The figures of a score [N], as it is published: of all but probabilities, higher is less sure."""
    probability = name in (BASELINE, HEAD, "confidence")
    bins = reliability(score, right)
    surer = score if probability else -score
    risk = risk_coverage(surer, right)
    chosen = np.unique(np.linspace(0, len(risk) - 1, DRAWN).astype(int))
    curve = [((n + 1) / len(risk), float(risk[n])) for n in chosen.tolist()]
    half = float(risk[max(0, len(risk) // 2 - 1)])
    ece = calibration_error(bins) if probability else None
    return Judged(name, ece, auroc(surer, right), area(risk), half, bins, curve)


def evaluate(
    path: Path, *, sources: Sequence[str] = (), tokens: int = 131_072, device: str = "auto", plot: Path | None = None
) -> Iterator[Event]:
    """Judges every score of confidence that a checkpoint gives, on held-out text; the last event is a Result.

    The scores are the probability of the likeliest token, the calibrated head's where the model has one, and each
    signal that its learners publish. A token is right where the likeliest is the one that follows. Windows of the
    recipe's length, each read from a fresh state, are spread evenly over the text: at most `tokens` of it.

    sources: text to read instead of the recipe's own validation text, as a recipe names it.
    plot:    where to draw the reliability diagram and the risk-coverage curves, .html or .svg.
    """
    if plot is not None and plot.suffix not in FORMS:
        raise InputError(f"cannot draw into {plot}", f"name a file that ends in {' or '.join(FORMS)}")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise InputError(f"no such folder: {plot.parent}", "make it first")
    checkpoint = Checkpoint.open(path)
    context = context_for_recipe(checkpoint.recipe, device)
    model = checkpoint.model(context.device).eval()
    if model.confidence is None:
        yield Notice("the model has no calibrated head; a recipe asks for one with model.confidence={}")
    split = yield from held_out(checkpoint, sources)
    length = min(checkpoint.recipe.data.sequence, split.tokens - 1)
    count = min(max(1, tokens // length), (split.tokens - 1) // length)
    scores: dict[str, list[np.ndarray]] = {}
    rights, done = [], 0
    for window in windows(split, length, count, max(1, LOGITS // (length * model.vocab))):
        with context.activate():
            said, right = read(model, window)
        for name, value in said.items():
            scores.setdefault(name, []).append(value.flatten().double().cpu().numpy())
        rights.append(right.flatten().cpu().numpy())
        done += window.inputs.numel()
        yield Progress("reading", done, count * length, "tokens")
    truth = np.concatenate(rights)
    judged = [judge(name, np.concatenate(parts), truth) for name, parts in scores.items()]
    ideal = area(risk_coverage(truth.astype(float), truth))
    values = {"tokens": len(truth), "accuracy": float(truth.mean()), "ideal_aurc": ideal}
    if plot is not None:
        draw = confidence_chart.page if plot.suffix == ".html" else confidence_chart.picture
        write_file(plot, draw(f"{checkpoint.recipe.name}: does it know when it is right?", values, judged))
    scored = [asdict(each) | {"bins": [bin._asdict() for bin in each.bins]} for each in judged]
    yield Result({**values, "scores": scored}, plot)


@torch.no_grad()
def read(model: LanguageModel, window: Window) -> tuple[dict[str, Tensor], Tensor]:
    """Every score [B, T] by its name, and whether the likeliest token was right, bool [B, T]."""
    device = model.embedding.weight.device
    hidden, _, ctx = model.hidden(window.inputs.to(device))
    step = max(1, LOGITS // (hidden.shape[0] * model.vocab))
    surest, right = [], []
    for part, answers in zip(hidden.split(step, 1), window.targets.to(device).split(step, 1), strict=True):
        logits = model.head(part).float()
        top, likeliest = logits.max(-1)
        surest.append(top - logits.logsumexp(-1))
        right.append(likeliest == answers)
    said = torch.cat(surest, 1)
    scores = {BASELINE: said.exp()}
    if model.confidence is not None and "confidence" not in model.without:
        scores[HEAD] = model.confidence(hidden, ctx.signals, said).sigmoid()
    published = without_parts(model.spec, model.without).published
    return scores | {name: ctx.signals[name] for name in published}, torch.cat(right, 1)
