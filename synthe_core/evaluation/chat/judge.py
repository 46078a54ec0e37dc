"""A model as the judge of answers: a rating from 1 to 10, and which of two answers is better, in both orders.

Source: Zheng et al. 2023, "Judging LLM-as-a-judge with MT-Bench and Chatbot Arena".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from synthe_core.errors import WorkError
from synthe_core.evaluation.chat.models import ChatModel
from synthe_core.evaluation.chat.questions import Question

MAX_TOKENS = 400
REASON = {"type": "string", "maxLength": 600}
RATING: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": REASON, "rating": {"type": "integer", "minimum": 1, "maximum": 10}},
    "required": ["reason", "rating"],
    "additionalProperties": False,
}
VERDICT: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": REASON, "better": {"enum": ["A", "B", "tie"]}},
    "required": ["reason", "better"],
    "additionalProperties": False,
}
_RATE = """\
Rate the last answer of an assistant in the conversation below: is it helpful, correct, relevant and deep enough, and \
does it follow the request? Length is no merit. First give the reason in a sentence or two, then a rating from 1 \
(useless) to 10 (excellent), as JSON: {{"reason": "...", "rating": 5}}

{conversation}"""
_COMPARE = """\
Two assistants had the conversations below with the same user. Which one answers better: more helpful, correct and \
relevant, and closer to the request? Neither order nor length is a merit. First give the reason in a sentence or two, \
then "A", "B" or "tie", as JSON: {{"reason": "...", "better": "A"}}

<assistant A>
{first}
</assistant A>

<assistant B>
{second}
</assistant B>"""


class Judge:
    """Judges by `model`. An answer without such JSON counts as no judgement."""

    def __init__(self, model: ChatModel) -> None:
        self.model = model

    def rate(self, question: Question, answers: Sequence[str]) -> int | None:
        """The rating of the last of `answers`, the model's turns so far; None where the judge gave none."""
        value = self._ask(_RATE.format(conversation=transcript(question, answers)), RATING)
        rating = value.get("rating")
        return rating if isinstance(rating, int) and not isinstance(rating, bool) and 1 <= rating <= 10 else None

    def compare(self, question: Question, first: Sequence[str], second: Sequence[str]) -> tuple[float, bool] | None:
        """(the first one's share: 1, 1/2 or 0; whether both orders agreed); None where the judge gave no verdict.

        The judge sees both orders. A win needs both; all else is a tie.
        """
        verdicts = [
            self._verdict(question, first, second),
            {"A": "B", "B": "A"}.get(swapped := self._verdict(question, second, first), swapped),
        ]
        if "" in verdicts:
            return None
        agreed = verdicts[0] == verdicts[1]
        return ({"A": 1.0, "B": 0.0, "tie": 0.5}[verdicts[0]] if agreed else 0.5), agreed

    def _verdict(self, question: Question, first: Sequence[str], second: Sequence[str]) -> str:
        text = _COMPARE.format(first=transcript(question, first), second=transcript(question, second))
        better = self._ask(text, VERDICT).get("better")
        return better if better in ("A", "B", "tie") else ""

    def _ask(self, text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = self.model.reply([{"role": "user", "content": text}], MAX_TOKENS, schema)
        except WorkError as error:
            raise WorkError(f"the judge failed: {error.message}", error.hint) from error
        begin, end = answer.find("{"), answer.rfind("}")
        try:
            value = json.loads(answer[begin : end + 1])
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def transcript(question: Question, answers: Sequence[str]) -> str:
    """The conversation up to the last of `answers`, with the right answers that the question has."""
    parts = []
    for number, answer in enumerate(answers):
        parts.append(f"User: {question.turns[number]}")
        if number < len(question.reference) and question.reference[number]:
            parts.append(f"A right answer: {question.reference[number]}")
        parts.append(f"Assistant: {answer}")
    return "\n\n".join(parts)
