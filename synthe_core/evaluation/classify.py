"""The verb `eval classify`: an encoder on labelled texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from synthe_core.data.labelled import Passages, batch, passages
from synthe_core.data.shards import Split
from synthe_core.data.spec import DataSpec
from synthe_core.errors import InputError, closest
from synthe_core.evaluation import confusion_chart
from synthe_core.evaluation.class_scores import class_scores
from synthe_core.evaluation.held_out import held_out
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.interop.hub import local_path
from synthe_core.model.classifier import Classifier
from synthe_core.storage.atomic import write_file
from synthe_core.storage.checkpoint import Checkpoint

TOKENS = 16_384  # of a pass
FORMS = (".html", ".svg")
SHOWN = 3  # labels that a message names


def evaluate(
    path: Path,
    *,
    sources: Sequence[str] = (),
    labels: str | None = None,
    field: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    plot: Path | None = None,
) -> Iterator[Event]:
    """Classifies texts with the encoder at `path`, and scores it; the last event is a Result of `ClassScores`.

    A text is cut into passages of the training length as in training; the mean of their probabilities is its own.
    Texts whose label the encoder has no class for are left out, with a notice.

    sources: texts instead of the recipe's validation text, as a recipe names them. labels, field: as `data.labels` and
    `data.field`, by default the recipe's. limit: at most so many texts, spread evenly. plot: where to draw the
    confusion matrix and the reliability diagram, .html or .svg.

    InputError for a language model, texts without labels, and labels of which the encoder has none.
    """
    if plot is not None and plot.suffix not in FORMS:
        raise InputError(f"cannot draw into {plot}", f"name a file that ends in {' or '.join(FORMS)}")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise InputError(f"no such folder: {plot.parent}", "make it first")
    checkpoint = Checkpoint.open(local_path(path))
    context = context_for_recipe(checkpoint.recipe, device)
    model = checkpoint.classifier(context.device).eval()
    spec = _data(checkpoint.recipe.data, labels, field)
    split = yield from held_out(spec, checkpoint.tokenizer(), sources)
    usable = yield from _known(split, checkpoint.classes, spec)
    chosen = _spread(usable, limit)
    each = yield from _probabilities(model, split, chosen, spec.sequence, context)
    documents, first, owner = np.unique(chosen.documents, return_index=True, return_inverse=True)
    sums = np.zeros((len(documents), each.shape[1]))
    np.add.at(sums, owner, each)
    means = sums / np.bincount(owner)[:, None]
    scores = class_scores(means, chosen.labels[first], checkpoint.classes)
    if plot is not None:
        draw = confusion_chart.page if plot.suffix == ".html" else confusion_chart.picture
        write_file(plot, draw(f"{checkpoint.recipe.name}: which class is which?", scores))
    values = asdict(scores)
    values["classes"] = [one._asdict() for one in scores.classes]
    values["bins"] = [one._asdict() for one in scores.bins]
    yield Result({**values, "passages": len(each)}, plot)


def _data(spec: DataSpec, labels: str | None, field: str | None) -> DataSpec:
    chosen = {"labels": labels or spec.labels or "path", "field": field or spec.field}
    return DataSpec.model_validate(spec.model_dump() | chosen)


def _known(split: Split, classes: Sequence[str], spec: DataSpec) -> Generator[Event, None, Passages]:
    """The passages of texts whose label is a class; a notice of the others."""
    documents = split.labels()
    counts = Counter(label for label, tokens in documents if tokens)
    without = counts.pop("", 0)
    if not counts:
        raise InputError(
            f"no text has a label by '{spec.labels}'",
            "--labels path is for a folder of folders, field:NAME for rows of tables",
        )
    foreign = sorted(set(counts) - set(classes), key=lambda label: (-counts[label], label))
    names = ", ".join(foreign[:SHOWN]) + (f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else "")
    if len(foreign) == len(counts):
        near = closest(foreign[0], classes)
        known = f"did you mean '{near}'?" if near else f"its classes: {', '.join(classes[:20])}"
        raise InputError(f"the encoder has no class of the texts' labels: {names}", known)
    if foreign:
        left = sum(counts[label] for label in foreign)
        yield Notice(f"{left:,} texts are left out, whose labels are no classes of the encoder: {names}", "warning")
    if without:
        yield Notice(f"{without:,} texts without a label are left out", "warning")
    return passages(documents, classes, spec.sequence)


def _spread(all_of: Passages, limit: int | None) -> Passages:
    """The passages of `limit` documents, spread evenly over all of them."""
    documents = np.unique(all_of.documents)
    if limit is None or limit >= len(documents):
        return all_of
    chosen = documents[np.arange(limit) * len(documents) // limit]
    stays = np.isin(all_of.documents, chosen)
    return Passages(*(column[stays] for column in all_of))


@torch.no_grad()
def _probabilities(
    model: Classifier, split: Split, chosen: Passages, sequence: int, context: ExecutionContext
) -> Generator[Event, None, np.ndarray]:
    """float64 [N, C] of each passage. Passages of like length share a pass, so that little of it is padding."""
    order = np.argsort(chosen.lengths, kind="stable")
    result = np.zeros((len(order), model.head.weight.shape[0]))
    rows = max(1, TOKENS // sequence)
    for start in range(0, len(order), rows):
        numbers = order[start : start + rows]
        texts = batch([(split, chosen, int(number)) for number in numbers], int(chosen.lengths[numbers].max()))
        assert texts.lengths is not None
        with context.activate():
            logits = model(texts.inputs.to(context.device), texts.lengths.to(context.device))
        result[numbers] = logits.double().softmax(-1).cpu().numpy()
        yield Progress("classifying", start + len(numbers), len(order), "passages")
    return result
