"""Training the classifier of pairs, and its measured comparison with simple rules."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synthe_core.errors import InputError
from synthe_core.evaluation.calibration import auroc
from synthe_core.events import Event, Measurement, Progress, Result
from synthe_core.swarm.checking.claim_states import ClaimStates
from synthe_core.swarm.checking.classifier import CONTRADICTED, PairClassifier, fit
from synthe_core.swarm.checking.features import pair_features
from synthe_core.swarm.checking.labelled_pairs import LabelledPair, data_sets
from synthe_core.swarm.checking.rules import conflicts, negation_and_overlap

FOLDS = 5
SEED = 0
PRECISION = 0.8
"""Of the written classifier, on training rows that it has not seen."""
CHUNK = 32  # pairs between two reports of progress

PairSets = Mapping[str, Sequence[LabelledPair]]


class Quality(NamedTuple):
    """How well scores find contradictions; precision and recall at a threshold."""

    precision: float
    recall: float
    auroc: float


@dataclass
class _Rows:
    """What is read of one data set: features [N, F], states [N, D] or None, labels [N]."""

    pairs: Sequence[LabelledPair]
    features: np.ndarray
    hidden: np.ndarray | None
    labels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.labels = np.array([pair.label for pair in self.pairs])

    @property
    def contradicted(self) -> np.ndarray:
        return self.labels == CONTRADICTED


def train_verifier(
    folder: Path, out: Path, states: ClaimStates | None = None, base: str = "", precision: float = PRECISION
) -> Iterator[Event]:
    """Trains the classifier on NAME.train.jsonl of `folder`, measures it on NAME.test.jsonl and writes it to `out`.

    states: reads a model's states, and `base` is its digest; without them, features alone. Methods are compared at the
    threshold of the best F1 on the training rows, each judged by a classifier that has not seen it. What is written has
    the threshold from which such rows are contradictions with `precision`: a third of them are, and few sentences of
    answers. Data sets of claims without evidence are measured with a classifier of their own, which is not written.

    Yields a Measurement for each data set and method, the last one of what is written.
    """
    train, test = data_sets(folder, "train"), data_sets(folder, "test")
    rows: dict[tuple[str, str], _Rows] = {}
    for half, sets in (("train", train), ("test", test)):
        for name, pairs in sets.items():
            rows[half, name] = yield from _read(f"{name} {half}", pairs, states)
    with_evidence = [name for name in train if any(pair.known for pair in train[name])]
    alone = [name for name in train if name not in with_evidence]
    if not with_evidence:
        raise InputError(f"the training rows in {folder} have claims without evidence only", "add premise or evidence")
    classifier = _classifier([rows["train", name] for name in with_evidence], states is not None, precision)
    for names in filter(None, (with_evidence, alone)):
        trained = [rows["train", name] for name in names]
        methods = _methods(trained, states is not None)
        if names is with_evidence:
            methods[f"written, for a precision of {precision:g}"] = (_scorer(classifier), classifier.threshold)
        for name in (name for name in names if name in test):
            for method, (score, threshold) in methods.items():
                measured = quality(score(rows["test", name]), rows["test", name].contradicted, threshold)
                yield Measurement(f"{name}, {method}", {**measured._asdict(), "pairs": len(test[name])})
    classifier.base = base if states is not None else ""
    classifier.save(out)
    yield Result(
        {"threshold": classifier.threshold, "train_pairs": sum(len(train[name]) for name in with_evidence)}, out
    )


def quality(scores: np.ndarray, contradicted: np.ndarray, threshold: float) -> Quality:
    """Precision and recall of the pairs with `scores` >= threshold, and the area under the ROC curve.

    Precision is 0 where no pair reaches the threshold.
    """
    flagged = scores >= threshold
    hits = int((flagged & contradicted).sum())
    return Quality(
        hits / max(1, int(flagged.sum())), hits / max(1, int(contradicted.sum())), auroc(scores, contradicted)
    )


def best_threshold(scores: np.ndarray, contradicted: np.ndarray) -> float:
    """The threshold with the best F1: half-way between two scores."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(contradicted[order])
    values = scores[order]
    last = np.append(values[1:] < values[:-1], True)  # equal scores are flagged together
    f1 = np.where(last, 2 * hits / (np.arange(1, len(scores) + 1) + contradicted.sum()), -1.0)
    best = int(f1.argmax())
    below = values[best + 1] if best + 1 < len(values) else 0.0
    return float((values[best] + below) / 2)


def threshold_of_precision(scores: np.ndarray, contradicted: np.ndarray, precision: float) -> float:
    """The lowest threshold from which at least `precision` of the pairs are contradictions; the highest score if none
    is."""
    order = np.argsort(-scores, kind="stable")
    values = scores[order]
    last = np.append(values[1:] < values[:-1], True)
    reached = last & (np.cumsum(contradicted[order]) >= precision * np.arange(1, len(scores) + 1))
    return float(values[np.flatnonzero(reached)[-1]]) if reached.any() else float(values[0])


def out_of_fold(features: np.ndarray, hidden: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
    """float [N]: the probability of a contradiction by classifiers of which none has seen the row that it judges."""
    fold = np.random.default_rng(SEED).permutation(len(labels)) % FOLDS
    scores = np.zeros(len(labels))
    for each in range(FOLDS):
        rest, part = fold != each, fold == each
        classifier = fit(features[rest], None if hidden is None else hidden[rest], labels[rest])
        own = classifier.probabilities(features[part], None if hidden is None else hidden[part])
        scores[part] = own[:, CONTRADICTED]
    return scores


def _read(what: str, pairs: Sequence[LabelledPair], states: ClaimStates | None) -> Generator[Event, None, _Rows]:
    texts = [(pair.known, pair.stated) for pair in pairs]
    hidden = []
    for begin in range(0, len(texts), CHUNK) if states is not None else ():
        assert states is not None
        yield Progress(f"read {what}", begin, len(texts), "pairs")
        hidden.append(states(texts[begin : begin + CHUNK]))
    return _Rows(pairs, pair_features(texts), np.concatenate(hidden).astype(np.float64) if hidden else None)


Scorer = Callable[[_Rows], np.ndarray]


def _methods(trained: Sequence[_Rows], with_states: bool) -> dict[str, tuple[Scorer, float]]:
    """Each method's scores, and its threshold from the training rows."""
    pairs = [pair for rows in trained for pair in rows.pairs]
    contradicted = np.concatenate([rows.contradicted for rows in trained])

    def simple(rows: _Rows) -> np.ndarray:
        return np.array([negation_and_overlap(pair.known, pair.stated, 0.0) for pair in rows.pairs])

    def by_rules(rows: _Rows) -> np.ndarray:
        return np.array([float(bool(conflicts(pair.known, pair.stated))) for pair in rows.pairs])

    overlaps = np.array([negation_and_overlap(pair.known, pair.stated, 0.0) for pair in pairs])
    methods: dict[str, tuple[Scorer, float]] = {
        "negation and overlap": (simple, max(best_threshold(overlaps, contradicted), 1e-9)),
        "rules": (by_rules, 0.5),
    }
    for name, uses_states in (("features", False), ("features and states", True)):
        if uses_states <= with_states:
            classifier = _classifier(trained, uses_states)
            methods[name] = (_scorer(classifier), classifier.threshold)
    return methods


def _scorer(classifier: PairClassifier) -> Scorer:
    return lambda rows: classifier.probabilities(rows.features, rows.hidden)[:, CONTRADICTED]


def _classifier(trained: Sequence[_Rows], with_states: bool, precision: float | None = None) -> PairClassifier:
    """Its threshold is of that precision, or of the best F1."""
    features = np.concatenate([rows.features for rows in trained])
    labels = np.concatenate([rows.labels for rows in trained])
    hidden = np.concatenate([rows.hidden for rows in trained if rows.hidden is not None]) if with_states else None
    classifier = fit(features, hidden, labels)
    scores, contradicted = out_of_fold(features, hidden, labels), labels == CONTRADICTED
    if precision is None:
        classifier.threshold = best_threshold(scores, contradicted)
    else:
        classifier.threshold = threshold_of_precision(scores, contradicted, precision)
    return classifier
