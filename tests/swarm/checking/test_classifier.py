"""The classifier of pairs: it learns, its threshold is that of unseen rows, and its file is whole or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from synthe_core.errors import InputError
from synthe_core.events import Measurement, Result
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.swarm.checking import claim_states as claim_states_module
from synthe_core.swarm.checking.claim_states import claim_states
from synthe_core.swarm.checking.classifier import CONTRADICTED, OPEN, SUPPORTED, PairClassifier, fit
from synthe_core.swarm.checking.features import NAMES, pair_features
from synthe_core.swarm.checking.labelled_pairs import LabelledPair, data_sets, read_pairs
from synthe_core.swarm.checking.opening import FILE, open_verifier
from synthe_core.swarm.checking.training import (
    best_threshold,
    out_of_fold,
    quality,
    threshold_of_precision,
    train_verifier,
)
from tests.paths import SHARED

VERIFICATION = SHARED / "data" / "verification"
PAIRS = [
    ("The shop opens at 9 in the morning.", "The shop opens at 10 in the morning."),
    ("A man is playing a guitar.", "A man is not playing a guitar."),
    ("A man is playing a guitar.", "A man is playing an instrument."),
    ("", "The earth is flat."),
]


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that say nothing but in one column, states that say something in another, and labels."""
    chance = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    features, hidden = chance.normal(size=(count, len(NAMES))), chance.normal(size=(count, 16))
    features[:, 4] += 2.0 * (labels == CONTRADICTED)
    hidden[:, 7] += 4.0 * (labels == CONTRADICTED)
    return features, hidden, labels


def write(folder: Path, name: str, pairs: list[LabelledPair]) -> None:
    words = {SUPPORTED: "entailment", OPEN: "neutral", CONTRADICTED: "contradiction"}
    lines = [json.dumps({"premise": k, "hypothesis": s, "label": words[label]}) for k, s, label in pairs]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def made_pairs(count: int, first: int = 0) -> list[LabelledPair]:
    pairs = []
    for number in range(first, first + count):
        known = f"The shop {number} sells {number + 3} books about trees."
        stated = (known, f"The shop {number} has a garden.", f"The shop {number} does not sell books about trees.")
        pairs += [LabelledPair(known, stated[label], label) for label in (SUPPORTED, OPEN, CONTRADICTED)]
    return pairs


def test_features_are_finite_and_named() -> None:
    values = pair_features(PAIRS)
    assert values.shape == (len(PAIRS), len(NAMES)) and np.isfinite(values).all()
    assert values[0][NAMES.index("number conflicts")] == 1
    assert values[1][NAMES.index("negation in one of both")] == 1
    assert pair_features([]).shape == (0, len(NAMES))


def test_it_learns_from_features_and_from_states() -> None:
    features, hidden, labels = rows(300)
    unseen_features, unseen_hidden, unseen = rows(300, seed=1)
    alone = fit(features, None, labels, penalty=10.0)
    both = fit(features, hidden, labels, penalty=10.0)
    bad = unseen == CONTRADICTED
    of_features = quality(alone.probabilities(unseen_features, None)[:, CONTRADICTED], bad, 0.5)
    of_both = quality(both.probabilities(unseen_features, unseen_hidden)[:, CONTRADICTED], bad, 0.5)
    assert 0.85 < of_features.auroc < of_both.auroc
    assert of_both.precision > 0.85 and of_both.recall > 0.85


def test_rows_are_judged_by_classifiers_that_have_not_seen_them() -> None:
    features, hidden, labels = rows(120)
    chance = np.random.default_rng(5).permutation(labels)  # nothing to learn: only a leak would find it
    scores = out_of_fold(features, hidden, chance)
    assert 0.3 < quality(scores, chance == CONTRADICTED, 0.5).auroc < 0.7


@pytest.mark.parametrize(
    ("scores", "bad", "threshold"),
    [
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 0.5),
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 1, 1], 0.05),
        ([0.5, 0.5, 0.5, 0.1], [1, 1, 0, 0], 0.3),  # equal scores are flagged together
    ],
)
def test_the_threshold_has_the_best_f1(scores: list[float], bad: list[int], threshold: float) -> None:
    assert best_threshold(np.array(scores), np.array(bad, dtype=bool)) == pytest.approx(threshold)


@pytest.mark.parametrize(("precision", "threshold"), [(1.0, 0.8), (0.75, 0.6), (0.5, 0.1), (0.0, 0.1)])
def test_the_threshold_of_a_precision_is_the_lowest(precision: float, threshold: float) -> None:
    scores, bad = np.array([0.9, 0.8, 0.7, 0.6, 0.2, 0.1]), np.array([1, 1, 0, 1, 0, 0], dtype=bool)
    assert threshold_of_precision(scores, bad, precision) == threshold
    assert threshold_of_precision(scores, ~bad, 1.0) == 0.9  # no threshold has it: the highest score


def test_quality_by_hand() -> None:
    measured = quality(np.array([0.9, 0.6, 0.4, 0.2]), np.array([True, False, True, False]), 0.5)
    assert measured == (0.5, 0.5, 0.75)
    assert quality(np.zeros(2), np.array([True, False]), 0.5)[:2] == (0.0, 0.0)


def test_a_saved_classifier_judges_the_same(tmp_path: Path) -> None:
    features, hidden, labels = rows(90)
    classifier = fit(features, hidden, labels)
    classifier.threshold, classifier.base = 0.31, "abc"
    classifier.save(tmp_path / FILE)
    again = PairClassifier.load(tmp_path / FILE, base="abc", states=lambda pairs: hidden[: len(pairs)])
    assert again.threshold == 0.31
    assert np.array_equal(again.probabilities(features, hidden), classifier.probabilities(features, hidden))
    assert again.score(PAIRS).shape == (4,) and again.score([]).shape == (0,)
    with pytest.raises(InputError, match="states of another model"):
        PairClassifier.load(tmp_path / FILE, base="abd")
    with pytest.raises(InputError, match="there is none"):
        PairClassifier.load(tmp_path / FILE, base="abc").score(PAIRS)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(InputError, match="is no classifier"):
        PairClassifier.load(tmp_path / FILE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    from tests.merging.models import checkpoint

    path = tmp_path_factory.mktemp("models") / "base"
    checkpoint(path, None)
    return LoadedModel.load(path)


def test_states_do_not_depend_on_the_pairs_beside_them(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    together = claim_states(model, PAIRS)
    alone = np.concatenate([claim_states(model, [pair]) for pair in PAIRS])
    assert len(together) == 4
    np.testing.assert_allclose(together, alone, atol=1e-5)
    monkeypatch.setattr(claim_states_module, "BATCH", 2)
    np.testing.assert_allclose(claim_states(model, PAIRS), together, atol=1e-5)
    assert len({row.tobytes() for row in together}) == 4
    assert claim_states(model, []).shape == (0, 0)


def test_training_measures_each_method_and_writes_the_classifier(tmp_path: Path, model: LoadedModel) -> None:
    write(tmp_path, "shops.train", made_pairs(20))
    write(tmp_path, "shops.test", made_pairs(10, first=20))
    write(tmp_path, "claims.train", [LabelledPair("", pair.stated, pair.label) for pair in made_pairs(5)])
    write(tmp_path, "claims.test", [LabelledPair("", pair.stated, pair.label) for pair in made_pairs(5)])
    (tmp_path / "others.train.jsonl").write_text('{"premise": "a", "hypothesis": "b", "label": "True"}\n')
    events = list(train_verifier(tmp_path, tmp_path / FILE, lambda pairs: claim_states(model, pairs), model.digest))
    measured = {event.case: event.values for event in events if isinstance(event, Measurement)}
    methods = ("negation and overlap", "rules", "features", "features and states")
    written = "written, for a precision of 0.8"
    cases = [f"shops, {method}" for method in (*methods, written)] + [f"claims, {method}" for method in methods]
    assert list(measured) == cases
    assert measured[f"shops, {written}"]["precision"] == 1.0
    assert measured["shops, features and states"]["auroc"] > 0.95
    assert isinstance(events[-1], Result) and events[-1].values["train_pairs"] == 60
    verifier = open_verifier(tmp_path, model)
    assert verifier is not None
    bad, good = verifier.score([(made_pairs(1, 50)[0].known, pair.stated) for pair in made_pairs(1, 50)[::-2]])
    assert bad > verifier.threshold > good
    assert open_verifier(tmp_path / "nowhere", model) is None


@pytest.mark.parametrize("line", ["nothing", "[]", '{"premise": "a", "label": "neutral"}', '{"hypothesis": "a"}'])
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.train.jsonl"
    path.write_text('{"premise": "a", "hypothesis": "b", "label": "neutral"}\n' + line)
    with pytest.raises(InputError, match=r"x\.train\.jsonl:2: no pair with a label"):
        read_pairs(path)
    with pytest.raises(InputError, match="no pair with a label"):
        data_sets(tmp_path, "train")


def test_a_folder_without_pairs_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no NAME\.train\.jsonl"):
        data_sets(tmp_path, "train")


@pytest.mark.skipif(not VERIFICATION.is_dir(), reason="needs ../shared")
def test_features_beat_negation_and_overlap_on_real_pairs(tmp_path: Path) -> None:
    events = train_verifier(VERIFICATION, tmp_path / FILE)
    measured = {event.case: event.values for event in events if isinstance(event, Measurement)}
    for name in ("cb", "mnli", "sick", "vitaminc"):
        assert measured[f"{name}, features"]["auroc"] > measured[f"{name}, negation and overlap"]["auroc"] + 0.03
