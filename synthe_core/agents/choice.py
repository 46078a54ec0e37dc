"""The best of several attempts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from synthe_core.agents.run import AgentRun

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
WORD = re.compile(r"\w+")


class Choice(NamedTuple):
    """The chosen run, and how many runs have its answer, itself among them."""

    run: AgentRun
    agreeing: int


def choose(runs: Sequence[AgentRun]) -> Choice:
    """The run whose answer most runs have (Wang et al. 2023, self-consistency); among these, the one whose tokens have
    the highest mean log-probability. Runs that a limit has ended count only where no other is there.

    runs: at least one.
    """
    complete = [each for each in runs if each.ending == "answer"] or list(runs)
    counts = Counter(answer_of(each.text) for each in complete)
    most = max(counts.values())
    agreeing = [each for each in complete if counts[answer_of(each.text)] == most]
    return Choice(max(agreeing, key=lambda run: run.mean_logprob), most)


def answer_of(text: str) -> str:
    """What two answers that mean the same have in common: the last number, or where there is none all words."""
    numbers = NUMBER.findall(text)
    if numbers:
        return format(float(numbers[-1].replace(",", "")), ".12g")
    return " ".join(WORD.findall(text.casefold()))
