"""Ratings and corrections: of one's own answers alone, the last one counts, and a correction is a pair to review."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthe_core.errors import InputError
from synthe_core.swarm.answers import Answer
from synthe_core.swarm.feedback.feedback import Feedback
from synthe_core.swarm.feedback.pairs import PairState
from synthe_core.swarm.store import Store


def opened(folder: Path, **options: object) -> Feedback:
    feedback = Feedback(Store(folder / "swarm.db"), **options)  # type: ignore[arg-type]
    feedback.answers.add(Answer("a1", "ada", "c", "2 + 2?", "5", ("math", "code"), "math", "arithmetic", 0.8))
    return feedback


@pytest.fixture
def feedback(tmp_path: Path) -> Feedback:
    return opened(tmp_path)


def success(feedback: Feedback) -> float | None:
    return feedback.answers.get("a1").success


def test_the_last_rating_counts(feedback: Feedback) -> None:
    for score in (0.0, 1.0):
        feedback.rate("a1", score, "ada")
    rating = feedback.rating("a1", "ada")
    assert rating is not None and (rating.score, rating.signal) == (1.0, "rating")
    assert success(feedback) == 1.0


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_is_between_0_and_1(feedback: Feedback, score: float) -> None:
    with pytest.raises(InputError, match="not between 0 and 1"):
        feedback.rate("a1", score, "ada")


def test_nobody_rates_or_corrects_the_answers_of_another(feedback: Feedback) -> None:
    for action in (lambda: feedback.rate("a1", 0, "eve"), lambda: feedback.correct("a1", "4", "eve"),
                   lambda: feedback.rate("a2", 0, "ada")):  # fmt: skip
        with pytest.raises(InputError, match="no answer has the id"):
            action()
    assert success(feedback) is None and feedback.pairs() == []


def test_a_correction_is_a_pair_to_review_and_a_bad_rating(feedback: Feedback) -> None:
    pair = feedback.correct("a1", "4, says ada@example.org", "ada")
    assert (pair.prompt, pair.chosen, pair.rejected) == ("2 + 2?", "4, says [e-mail address]", "5")
    assert (pair.specialist, pair.source, pair.state, pair.answer) == ("math", "correction", PairState.NEW, "a1")
    assert success(feedback) == 0.0
    assert feedback.pairs(PairState.NEW, user="ada") == [pair]
    assert feedback.pairs(PairState.APPROVED) == []


@pytest.mark.parametrize("text", ["", " 5 "])
def test_a_correction_that_is_none_changes_nothing(feedback: Feedback, text: str) -> None:
    with pytest.raises(InputError):
        feedback.correct("a1", text, "ada")
    assert success(feedback) is None and feedback.rating("a1", "ada") is None


def test_implicit_signals_count_only_where_they_are_on_and_never_over_a_rating(tmp_path: Path) -> None:
    off = opened(tmp_path)
    assert off.observe("a1", "copied", "ada") is None and success(off) is None
    on = Feedback(off.store, implicit=True)
    observed = on.observe("a1", "copied", "ada")
    assert observed is not None and observed.signal == "copied" and success(on) == observed.score
    on.rate("a1", 0.0, "ada")
    assert on.observe("a1", "copied", "ada") is None and success(on) == 0.0
    with pytest.raises(InputError, match="unknown signal 'copyed'"):
        on.observe("a1", "copyed", "ada")


def test_what_is_taught_and_what_is_recorded_are_one(tmp_path: Path) -> None:
    taught: list[tuple[str, float]] = []

    def teach(answer: str, score: float) -> None:
        if score == 0.5:
            raise ZeroDivisionError
        taught.append((answer, score))

    feedback = opened(tmp_path, teach=teach)
    feedback.rate("a1", 1.0, "ada")
    with pytest.raises(ZeroDivisionError):
        feedback.rate("a1", 0.5, "ada")
    rating = feedback.rating("a1", "ada")
    assert taught == [("a1", 1.0)] and rating is not None and rating.score == 1.0
