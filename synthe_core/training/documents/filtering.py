"""Which of the things that a model writes about a passage are useful."""

from __future__ import annotations

from synthe_core.data.document_text.matching import contains, numbers, share_in, words
from synthe_core.training.documents.prompts import ANSWER, QUESTION

QUESTION_WORDS = range(3, 41)
ANSWER_WORDS = range(1, 16)
SUPPORTED = 0.8
"""The share of a continuation's words that the passage must have."""


def parse_question(text: str) -> tuple[str, str] | None:
    """The question and the answer of `Question: ... Answer: ...`; None where it is not of that form."""
    head, mark, tail = text.removeprefix(QUESTION).partition(ANSWER)
    question, answer = " ".join(head.split()), tail.strip().split("\n")[0].strip()
    return (question, answer) if mark and question and answer else None


def question_fault(question: str, answer: str, text: str) -> str | None:
    """Why a question about `text` is useless; None if it is useful."""
    if not question.endswith("?") or question.count("?") > 1 or len(words(question)) not in QUESTION_WORDS:
        return "not a question"
    if len(words(answer)) not in ANSWER_WORDS:
        return "too short or too long"
    if not contains(text, answer):
        return "answer not supported"
    if contains(question, answer):
        return "answer in the question"
    if not any(len(word) > 3 and word in set(words(text)) for word in words(question)):
        return "not about the passage"
    return None


def continuation_fault(continuation: str, text: str) -> str | None:
    """Why the end of a sentence is useless, written by a model that has read `text`; None if it is useful."""
    if not words(continuation):
        return "too short or too long"
    if not numbers(continuation) <= numbers(text) or share_in(text, continuation) < SUPPORTED:
        return "answer not supported"
    return None
