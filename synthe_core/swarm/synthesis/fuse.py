"""`synthesis: fuse`: one text, each token of it drawn from the mixture of the specialists' next-token distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from synthe_core.inference.request import Request
from synthe_core.swarm.events import AnswerToken
from synthe_core.swarm.generation import Generation
from synthe_core.swarm.synthesis.drafting import Assignment, Judge, Writing, Written, check_any

SEPARATOR = "+"
LEAST = 1e-3
"""The least weight of a specialist, before they are made to add up to 1."""

RunMixed = Callable[[Sequence[Request], Sequence[float]], Generation]
"""Starts requests that generate one text, with their weights."""


def fuse(run: RunMixed, assignments: Sequence[Assignment], judge: Judge, weights: Sequence[float]) -> Writing:
    """The text of the mixture, streamed. It is by all of them: `python+maths`."""
    limit = min(each.request.max_tokens for each in assignments)
    requests = [replace(each.request, max_tokens=limit) for each in assignments]
    with run(requests, [max(LEAST, weight) for weight in weights]) as generation:
        for _, text in generation:
            yield AnswerToken(text)
    answer = judge(SEPARATOR.join(each.specialist for each in assignments), generation.results[0])
    check_any([answer])
    return Written(answer, (answer,))
