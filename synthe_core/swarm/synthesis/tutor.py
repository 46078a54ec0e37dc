"""The answer of a specialist on another server, with one from here beside it: what is answered where that one fails,
and what the specialists here learn to answer otherwise."""

from __future__ import annotations

from collections.abc import Callable

from synthe_core.swarm.events import AnswerToken, Draft, DraftToken
from synthe_core.swarm.generation import Cancelled
from synthe_core.swarm.remote.chat import RemoteChat
from synthe_core.swarm.remote.connection import RemoteError
from synthe_core.swarm.synthesis.drafting import FAILED, Assignment, Judge, Preference, Run, Writing, Written, check_any

WHOLE = "stop"
"""Why an answer ended that nobody cut off."""

RemoteJudge = Callable[[RemoteChat], Draft]
"""Makes a draft of what another server has written."""


def tutored(
    run: Run, assignment: Assignment, judge: Judge, tutor: str, remote: RemoteChat, judge_remote: RemoteJudge
) -> Writing:
    """Both drafts are streamed as drafts, and the answer comes whole: the remote one, or the other one where it fails.

    Only a whole remote answer becomes a preference: it is preferred to the one from here.
    """
    try:
        with run([assignment.request]) as generation:
            for _, text in generation:
                yield DraftToken(assignment.specialist, text)
        draft, failure = judge(assignment.specialist, generation.results[0]), ""
        try:
            for text in remote:
                yield DraftToken(tutor, text)
        except RemoteError as error:
            if remote.cancelled:
                raise Cancelled("the answer was cancelled") from None
            failure = error.message
        if not failure and not remote.text.strip():
            failure = "the answer was empty"
    finally:
        remote.close()
    if failure:
        check_any([draft])
        yield AnswerToken(draft.text)
        return Written(draft, (draft,), degraded=f"{tutor}: {failure}")
    answer = judge_remote(remote)
    yield AnswerToken(answer.text)
    is_better = answer.reason == WHOLE and draft.reason not in FAILED and draft.text.split() != answer.text.split()
    preference = (
        Preference(assignment.specialist, answer.text, draft.text) if is_better and draft.text.strip() else None
    )
    return Written(answer, (answer, draft), preference=preference)
