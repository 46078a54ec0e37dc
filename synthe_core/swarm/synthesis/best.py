"""`synthesis: best`: the draft of the highest calibrated confidence, of those with the fewest contradictions."""

from __future__ import annotations

from collections.abc import Sequence

from synthe_core.swarm.events import AnswerToken
from synthe_core.swarm.synthesis.drafting import (
    FAILED,
    Assignment,
    Judge,
    Run,
    Writing,
    Written,
    drafts_of,
    together,
)


def best(run: Run, assignments: Sequence[Assignment], judge: Judge) -> Writing:
    """The best draft, once all are complete: its text comes as one piece, after the drafts' own."""
    drafts = yield from drafts_of(run, assignments, judge)
    whole = [each for each in drafts if each.reason not in FAILED]
    chosen = min(whole, key=lambda each: (len(each.contradictions), -each.confidence))
    yield AnswerToken(chosen.text)
    return Written(together(chosen, [each for each in drafts if each is not chosen]), tuple(drafts))
