"""Which of several attempts is chosen."""

from __future__ import annotations

import math

import pytest

from synthe_core.agents.choice import answer_of, choose
from synthe_core.agents.run import AgentRun


def run(text: str, logprob: float = -1.0, *, cut: bool = False) -> AgentRun:
    made = AgentRun([{"role": "user", "content": "?"}], [])
    made.add_answer(text, [], 4, cut=cut)
    made.sum_logprob = 4 * logprob
    return made


@pytest.mark.parametrize(
    "one,other,same",
    [
        ("It is 1,234.", "The answer is 1234.0", True),
        ("From 2 and 3 comes 5", "5", True),
        ("-5", "5", False),
        ("Paris!", "paris", True),
        ("Paris is large", "Paris", False),
    ],
)
def test_answers_that_mean_the_same(one: str, other: str, same: bool) -> None:
    assert (answer_of(one) == answer_of(other)) is same


def test_agreement_comes_before_probability() -> None:
    runs = [run("7", -0.1), run("It is 8.", -3), run("8", -2), run("9", -0.2)]
    assert choose(runs) == (runs[2], 2)


def test_without_agreement_the_likeliest_is_chosen() -> None:
    runs = [run("a", -2), run("b", -1), run("c", -3)]
    assert choose(runs) == (runs[1], 1)


def test_a_run_that_a_limit_has_ended_counts_only_alone() -> None:
    cut = [run("7", -0.1, cut=True), run("7", -0.2, cut=True)]
    whole = run("8", -5)
    assert choose([*cut, whole]) == (whole, 1) and choose(cut) == (cut[0], 2)
    assert AgentRun([], []).mean_logprob == -math.inf
