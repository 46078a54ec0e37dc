"""A conversation as its model reads it, and which of its tokens are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from synthe_core.data.chat_template import render, render_marked
from synthe_core.data.conversations.messages import Message
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError

Trained = Literal["assistant", "last", "all"]
Span = tuple[int, int]


class TrainingText(NamedTuple):
    """text: special tokens written out. spans: what is trained on, as pairs of characters in it.

    ends: whether the model's end token follows, which the template does not write. marked: whether the template says
    itself what is the model's.
    """

    text: str
    spans: list[Span]
    ends: bool = False
    marked: bool = False


class TrainingTokens(NamedTuple):
    """ids and, for each, whether it is a target of training: the model is to predict it from those before it."""

    ids: list[int]
    trained: list[bool]


def training_text(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Any = None, trained: Trained = "assistant"
) -> TrainingText:
    """The text of messages by the tokenizer's chat template, and what of it the assistant has written.

    An answer's span begins where the template's prompt for an answer ends, and ends with the token that ends the
    answer; what the template writes after that, such as a line break, is not the model's. A template with
    `{% generation %}` says itself what is the model's. trained: every answer, the last one, or all of the text.

    InputError for messages that the template refuses, and for a template that writes an earlier answer otherwise once
    more messages follow, as those do that remove earlier reasoning: of such conversations only the last answer can be
    trained on.
    """
    text, spans = render_marked(tokenizer, messages, variables={"tools": tools})
    marked = bool(spans)
    if marked:
        spans = spans[-1:] if trained == "last" else spans
    else:
        answers = [place for place, each in enumerate(messages) if each["role"] == "assistant"]
        answers = answers[-1:] if trained == "last" else answers
        spans = [_span(tokenizer, messages, tools, place, text) for place in answers]
    if trained == "all":
        spans = [(0, len(text))]
    ends = bool(spans) and spans[-1][1] == len(text) and _ending(tokenizer, text) is None
    return TrainingText(text, spans, ends, marked)


def training_tokens(tokenizer: Tokenizer, given: TrainingText) -> TrainingTokens:
    """The tokens of a text, and which are trained on: those with a character of a span.

    A text of a template that marks answers is tokenized as a whole, as transformers does it for
    `return_assistant_tokens_mask`. Any other is cut where an answer begins, if a token would reach over that place: the
    prompt of an answer has the tokens of what is before it.
    """
    ids, places = tokenizer.encode_with_places(given.text)
    crossed = {begin for begin, _ in given.spans} - {place for each in places for place in each} - {0, len(given.text)}
    if crossed and not given.marked:
        ids, places = _in_pieces(tokenizer, given.text, sorted(crossed))
    trained = [False] * len(ids)
    spans = iter(given.spans)
    span = next(spans, None)
    for index, (begin, end) in enumerate(places):
        while span is not None and begin >= span[1]:
            span = next(spans, None)
        trained[index] = span is not None and end > span[0]
    if given.ends:
        ids, trained = [*ids, tokenizer.end], [*trained, True]
    return TrainingTokens(ids, trained)


def _in_pieces(tokenizer: Tokenizer, text: str, cuts: Sequence[int]) -> tuple[list[int], list[Span]]:
    """The tokens of the pieces between `cuts`, and their characters in the whole text."""
    ids: list[int] = []
    places: list[Span] = []
    for begin, end in pairwise([0, *cuts, len(text)]):
        piece, inside = tokenizer.encode_with_places(text[begin:end])
        ids += piece
        places += [(begin + first, begin + last) for first, last in inside]
    return ids, places


def _span(tokenizer: Tokenizer, messages: Sequence[Message], tools: Any, place: int, text: str) -> Span:
    """Where the answer at `place` stands in the text of all messages."""
    variables = {"tools": tools}
    before = render(tokenizer, messages[:place], answer=True, variables=variables)
    through = render(tokenizer, messages[: place + 1], answer=False, variables=variables)
    if not text.startswith(before) or not text.startswith(through.rstrip()) or len(through) < len(before):
        raise InputError(
            f"the chat template writes message {place + 1} otherwise if more messages follow, or none",
            "train on the last answer only: trained: last",
        )
    end = _ending(tokenizer, through[len(before) :])
    if not _without_ends(tokenizer, through[len(before) :]).strip():
        what = "its tool calls" if messages[place].get("tool_calls") else "it"
        raise InputError(f"the chat template has no place for message {place + 1}: it writes nothing of {what}")
    return len(before), len(through.rstrip()) if end is None else len(before) + end


def _ending(tokenizer: Tokenizer, answer: str) -> int | None:
    """Where the token that ends an answer ends in it; None if it has none."""
    ends = [
        answer.rfind(spelled) + len(spelled) for i in tokenizer.ends if (spelled := tokenizer.spelling(i)) in answer
    ]
    return max(ends, default=None)


def _without_ends(tokenizer: Tokenizer, answer: str) -> str:
    for i in tokenizer.ends:
        answer = answer.replace(tokenizer.spelling(i), "")
    return answer
