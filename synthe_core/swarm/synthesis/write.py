"""`synthesis: write`: the base reads the drafts and writes one answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from synthe_core.inference.request import Request
from synthe_core.swarm.events import AnswerToken, Draft
from synthe_core.swarm.synthesis.drafting import (
    FAILED,
    Assignment,
    Judge,
    Run,
    Writing,
    Written,
    check_any,
    drafts_of,
    together,
)

INSTRUCTION = (
    "Several specialists have drafted an answer to the request below. Write one answer from what is right in their "
    "drafts. Answer the request itself, and do not mention the drafts."
)
MAX_DRAFT = 4000
"""Characters of a draft that the base reads."""

WriterRequest = Callable[[str], Request]
"""Makes the base's request of a message."""


def write(
    run: Run,
    assignments: Sequence[Assignment],
    judge: Judge,
    request: str,
    writer: WriterRequest,
) -> Writing:
    """The drafts, and then the base's answer, streamed. If only one draft is whole, it is the answer."""
    drafts = yield from drafts_of(run, assignments, judge)
    whole = [each for each in drafts if each.reason not in FAILED]
    if len(whole) == 1:
        yield AnswerToken(whole[0].text)
        return Written(whole[0], tuple(drafts))
    with run([writer(instruction(request, whole))]) as generation:
        for _, text in generation:
            yield AnswerToken(text)
    answer = judge("base", generation.results[0])
    check_any([answer])
    return Written(together(answer, drafts), tuple(drafts))


def instruction(request: str, drafts: Sequence[Draft]) -> str:
    """The message that the base answers."""
    parts = [f"Draft of {each.specialist}:\n{each.text.strip()[:MAX_DRAFT]}" for each in drafts]
    return "\n\n".join([INSTRUCTION, f"Request:\n{request}", *parts, "Your answer:"])
