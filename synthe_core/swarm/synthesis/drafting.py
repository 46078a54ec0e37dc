"""What the ways of synthesis have in common: specialists that draft, and how sure each may be of its draft."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from synthe_core.errors import InputError, WorkError
from synthe_core.inference.request import Request
from synthe_core.swarm.events import AnswerToken, Draft, DraftToken, SwarmEvent
from synthe_core.swarm.generation import Generated, Generation

FAILED = ("error", "refused")

Judge = Callable[[str, Generated], Draft]
"""Makes a draft, with its confidence and contradictions, of what a specialist has generated."""
Run = Callable[[Sequence[Request]], Generation]
"""Starts requests to the engine together."""
Writing = Generator[SwarmEvent, None, "Written"]


@dataclass(frozen=True)
class Preference:
    """Two answers to the request, the first better: a preference pair of the specialist whose answer is the second."""

    specialist: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Written:
    """An answer: its draft, and those of every specialist that was read for it.

    degraded: why another specialist answers than the one that should; "" if none does. preference: what was learned.
    """

    answer: Draft
    drafts: tuple[Draft, ...]
    degraded: str = ""
    preference: Preference | None = None


@dataclass(frozen=True)
class Assignment:
    """A specialist, and its request to the engine."""

    specialist: str
    request: Request


def single(run: Run, assignment: Assignment, judge: Judge) -> Writing:
    """One specialist's answer, streamed."""
    with run([assignment.request]) as generation:
        for _, text in generation:
            yield AnswerToken(text)
    draft = judge(assignment.specialist, generation.results[0])
    check_any([draft])
    return Written(draft, (draft,))


def drafts_of(run: Run, assignments: Sequence[Assignment], judge: Judge) -> Generator[SwarmEvent, None, list[Draft]]:
    """All specialists' drafts, generated as rows of one batch and streamed as drafts. One that fails leaves the others
    alone; an error if all do."""
    with run([each.request for each in assignments]) as generation:
        for index, text in generation:
            yield DraftToken(assignments[index].specialist, text)
    drafts = [judge(a.specialist, result) for a, result in zip(assignments, generation.results, strict=True)]
    check_any(drafts)
    return drafts


def check_any(drafts: Sequence[Draft]) -> None:
    """Raises the first draft's error if every draft has failed."""
    if all(each.reason in FAILED for each in drafts):
        first = drafts[0]
        raise (InputError if first.reason == "refused" else WorkError)(f"{first.specialist}: {first.message}")


def together(answer: Draft, drafts: Sequence[Draft]) -> Draft:
    """The answer with the tokens of its drafts in its counts."""
    return replace(
        answer,
        num_prompt_tokens=answer.num_prompt_tokens + sum(each.num_prompt_tokens for each in drafts),
        num_cached_tokens=answer.num_cached_tokens + sum(each.num_cached_tokens for each in drafts),
        num_output_tokens=answer.num_output_tokens + sum(each.num_output_tokens for each in drafts),
    )
