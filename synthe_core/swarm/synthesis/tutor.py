"""The answer of a specialist on another server, with one from here beside it: what is answered where that one fails,
and what the specialists here learn to answer otherwise."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from synthe_core.swarm.events import AnswerToken, Draft, DraftToken
from synthe_core.swarm.generation import Cancelled
from synthe_core.swarm.remote.chat import RemoteChat
from synthe_core.swarm.remote.connection import RemoteError
from synthe_core.swarm.synthesis.drafting import FAILED, Assignment, Judge, Preference, Run, Writing, Written, check_any

WHOLE = "stop"
"""Why an answer ended that nobody cut off."""
BREAK = "\n\n"
"""Between what was passed on of an answer that broke off, and the one that is given instead."""

RemoteJudge = Callable[[RemoteChat], Draft]
"""Makes a draft of what another server has written."""


def tutored(
    run: Run,
    assignment: Assignment,
    judge: Judge,
    tutor: str,
    remote: RemoteChat,
    judge_remote: RemoteJudge,
    stream: bool,
) -> Writing:
    """The remote answer, or the draft from here where it fails. Only a whole remote answer becomes a preference: it is
    preferred to the draft.

    stream: the remote answer is passed on as it comes. If it breaks off after that, the draft follows it in the same
    answer. Without it both are streamed as drafts, and the answer comes whole: then nothing of a broken one is in it.
    """
    failure: str | None = None
    passed = local = ""
    try:
        with run([assignment.request]) as generation:
            for source, piece in _together(remote, (text for _, text in generation)):
                if isinstance(piece, str) and source is remote:
                    passed += piece if stream else ""
                    yield AnswerToken(piece) if stream else DraftToken(tutor, piece)
                elif isinstance(piece, str):
                    local += piece
                    yield AnswerToken(piece) if failure and stream else DraftToken(assignment.specialist, piece)
                elif source is remote:
                    failure = _failure(remote, piece)
                    if failure and stream and (begun := f"{BREAK if passed else ''}{local}"):
                        yield AnswerToken(begun)
                elif piece is not None:
                    raise piece
        draft = judge(assignment.specialist, generation.results[0])
    finally:
        remote.close()
    if failure:
        check_any([draft])
        if not stream:
            yield AnswerToken(draft.text)
        degraded = f"{tutor}: {failure}"
        if not passed:
            return Written(draft, (draft,), degraded=degraded)
        broken = judge_remote(remote)
        contradictions = (*broken.contradictions, *draft.contradictions)
        answer = replace(draft, text=f"{passed}{BREAK}{draft.text}", contradictions=contradictions)
        return Written(answer, (draft,), degraded=f"{degraded}; what it had said stands before the answer from here")
    answer = judge_remote(remote)
    if not stream:
        yield AnswerToken(answer.text)
    is_better = answer.reason == WHOLE and draft.reason not in FAILED and draft.text.split() != answer.text.split()
    preference = (
        Preference(assignment.specialist, answer.text, draft.text) if is_better and draft.text.strip() else None
    )
    return Written(answer, (answer, draft), preference=preference)


def _failure(remote: RemoteChat, end: BaseException | None) -> str:
    """Why the remote answer is none; "" if it is whole. Raises Cancelled where nobody waits for it any more."""
    if remote.cancelled:
        raise Cancelled("the answer was cancelled")
    if end is None:
        return "" if remote.text.strip() else "the answer was empty"
    if isinstance(end, RemoteError):
        return end.message
    raise end


def _together(remote: RemoteChat, local: Iterable[str]) -> Iterator[tuple[object, str | BaseException | None]]:
    """(source, piece) of both as they come, until both have ended; at an end the piece is None, or what went wrong.
    Whoever leaves early ends both sources."""
    pieces: queue.SimpleQueue[tuple[object, str | BaseException | None]] = queue.SimpleQueue()

    def read(source: object, texts: Iterable[str]) -> None:
        try:
            for text in texts:
                pieces.put((source, text))
            pieces.put((source, None))
        except BaseException as error:  # it belongs to whoever waits
            pieces.put((source, error))

    for each in (remote, local):
        threading.Thread(target=read, args=(each, each), name="tutored", daemon=True).start()
    ended = 0
    while ended < 2:
        source, piece = pieces.get()
        ended += not isinstance(piece, str)
        yield source, piece
