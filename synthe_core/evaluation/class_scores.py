"""What a classifier's probabilities are worth: accuracy, each class, confusions and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from synthe_core.evaluation.calibration import Bin, area, auroc, calibration_error, reliability, risk_coverage
from synthe_core.evaluation.wilson_interval import wilson_interval


class ClassScore(NamedTuple):
    """One class: how many texts have it, how many are given it, and how well the two agree.

    precision: the share of the texts given it that have it; recall: of those that have it that are given it; f1: their
    harmonic mean. 0 where nothing is counted.
    """

    name: str
    texts: int
    predicted: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassScores:
    """The scores of N texts.

    low, high: 95% interval of the accuracy (Wilson). chance: the accuracy of always giving the most frequent class.
    nats: mean -log p of the right class. macro_f1: the mean over the classes that a text has or is given.
    confusion: rows are the texts' classes, columns the given ones. ece: calibration error of the highest probability,
    and its `bins`. auroc: how well that probability separates right from wrong. aurc: area under risk and coverage.
    """

    texts: int
    accuracy: float
    low: float
    high: float
    chance: float
    nats: float
    macro_f1: float
    classes: list[ClassScore]
    confusion: list[list[int]]
    ece: float
    auroc: float
    aurc: float
    bins: list[Bin]


def class_scores(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> ClassScores:
    """Scores of probabilities float64 [N, C], N at least 1, against the classes `labels` int64 [N]."""
    given, count = probabilities.argmax(1), len(labels)
    right = given == labels
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (labels, given), 1)
    classes = [_class(name, confusion, number) for number, name in enumerate(names)]
    counted = [each.f1 for each in classes if each.texts or each.predicted]
    score = probabilities.max(1)
    bins = reliability(score, right)
    likelihood = probabilities[np.arange(count), labels]
    return ClassScores(
        count,
        float(right.mean()),
        *wilson_interval(int(right.sum()), count),
        float(np.bincount(labels).max() / count),
        float(-np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean()),
        float(np.mean(counted)),
        classes,
        confusion.tolist(),
        calibration_error(bins),
        auroc(score, right),
        area(risk_coverage(score, right)),
        bins,
    )


def _class(name: str, confusion: np.ndarray, number: int) -> ClassScore:
    texts, predicted = int(confusion[number].sum()), int(confusion[:, number].sum())
    hits = int(confusion[number, number])
    precision, recall = hits / max(predicted, 1), hits / max(texts, 1)
    return ClassScore(name, texts, predicted, precision, recall, 2 * hits / max(texts + predicted, 1))
