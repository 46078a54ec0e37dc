"""A conversation as its model reads it, and which of its tokens are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from synthe_core.data.chat_template import Marked, Rendering, render_each, render_each_marked
from synthe_core.data.conversations.messages import Message
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.data.tool_calls.plain_messages import for_template
from synthe_core.errors import InputError

Trained = Literal["assistant", "last", "all"]
Span = tuple[int, int]


class TrainingText(NamedTuple):
    """text: special tokens written out. spans: what is trained on, as pairs of characters in it.

    ends: whether the model's end token follows, which the template does not write. The line break that it writes is
    left out then, so that the token follows the answer. marked: whether the template says itself what is the model's.
    """

    text: str
    spans: list[Span]
    ends: bool = False
    marked: bool = False


class TrainingTokens(NamedTuple):
    """ids and, for each, whether it is a target of training: the model is to predict it from those before it."""

    ids: list[int]
    trained: list[bool]


class Chat(NamedTuple):
    """Messages, the tools that they may call, and what is trained on: every answer, the last one, or all of the
    text."""

    messages: Sequence[Message]
    tools: Any = None
    trained: Trained = "assistant"

    @property
    def answers(self) -> list[int]:
        """The places of the messages that are trained on."""
        places = [place for place, each in enumerate(self.messages) if each["role"] == "assistant"]
        return places[-1:] if self.trained == "last" else places


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
    (given,) = training_texts(tokenizer, [Chat(messages, tools, trained)])
    if isinstance(given, InputError):
        raise given
    return given


def training_texts(tokenizer: Tokenizer, chats: Sequence[Chat]) -> list[TrainingText | InputError]:
    """`training_text` of each, rendered together; an InputError where it fails.

    Of a template that knows no tools, tools and calls are texts, as in the prompts of a server.
    """
    chats = [_for_template(tokenizer, chat) for chat in chats]
    whole = render_each_marked(tokenizer, [Rendering(chat.messages, False, chat.tools) for chat in chats])
    ask: list[Rendering] = []
    for chat, given in zip(chats, whole, strict=True):
        if isinstance(given, Marked) and not given.spans:
            for place in chat.answers:
                ask.append(Rendering(chat.messages[:place], True, chat.tools))
                if place < len(chat.messages) - 1:
                    ask.append(Rendering(chat.messages[: place + 1], False, chat.tools))
    rendered = iter(render_each(tokenizer, ask))
    made: list[TrainingText | InputError] = []
    for chat, given in zip(chats, whole, strict=True):
        if isinstance(given, InputError):
            made.append(given)
            continue
        prefixes = []
        for place in chat.answers if not given.spans else ():
            before = next(rendered)
            prefixes.append((place, before, next(rendered) if place < len(chat.messages) - 1 else given.text))
        try:
            made.append(_training_text(tokenizer, chat, given, prefixes))
        except InputError as error:
            made.append(error)
    return made


def _for_template(tokenizer: Tokenizer, chat: Chat) -> Chat:
    messages, tools = for_template(tokenizer, chat.messages, chat.tools)
    return Chat([dict(message) for message in messages], tools, chat.trained)


def _training_text(
    tokenizer: Tokenizer,
    chat: Chat,
    given: Marked,
    prefixes: Sequence[tuple[int, str | InputError, str | InputError]],
) -> TrainingText:
    """prefixes: for each answer that is trained on its place, the text before it and the text through it."""
    text, spans = given
    marked = bool(spans)
    if marked:
        spans = spans[-1:] if chat.trained == "last" else spans
    else:
        spans = [_span(tokenizer, chat.messages, place, before, after, text) for place, before, after in prefixes]
    endless = bool(spans) and _ending(tokenizer, text) is None
    if endless and not marked and spans[-1][1] == len(text.rstrip()):
        text = text[: spans[-1][1]]  # the end token follows the answer itself, so that the model learns to stop
    if chat.trained == "all":
        spans = [(0, len(text))]
    ends = endless and spans[-1][1] == len(text)
    return TrainingText(text, spans, ends, marked)


def training_tokens(tokenizer: Tokenizer, given: TrainingText) -> TrainingTokens:
    """The tokens of a text, and which are trained on: those with a character of a span.

    A text of a template that marks answers is tokenized as a whole, as transformers does it for
    `return_assistant_tokens_mask`. Any other is cut where an answer begins, if a token would reach over that place: the
    prompt of an answer has the tokens of what is before it.
    """
    return training_tokens_of_each(tokenizer, [given])[0]


def training_tokens_of_each(tokenizer: Tokenizer, given: Sequence[TrainingText]) -> list[TrainingTokens]:
    """`training_tokens` of each."""
    encoded = tokenizer.encode_batch_with_places([each.text for each in given])
    return [_tokens(tokenizer, each, *one) for each, one in zip(given, encoded, strict=True)]


def _tokens(tokenizer: Tokenizer, given: TrainingText, ids: list[int], places: list[Span]) -> TrainingTokens:
    edges = np.array(places, np.int64).reshape(-1, 2)
    if not given.marked:
        inside = {begin for begin, _ in given.spans} - {0, len(given.text)}
        if crossed := {begin for begin in inside if not (edges == begin).any()}:
            ids, places = _in_pieces(tokenizer, given.text, sorted(crossed))
            edges = np.array(places, np.int64).reshape(-1, 2)
    trained = np.zeros(len(ids), np.bool_)
    for begin, end in given.spans:
        trained |= (edges[:, 0] < end) & (edges[:, 1] > begin)
    marks = trained.tolist()
    return TrainingTokens([*ids, tokenizer.end], [*marks, True]) if given.ends else TrainingTokens(ids, marks)


def _in_pieces(tokenizer: Tokenizer, text: str, cuts: Sequence[int]) -> tuple[list[int], list[Span]]:
    """The tokens of the pieces between `cuts`, and their characters in the whole text."""
    ids: list[int] = []
    places: list[Span] = []
    for begin, end in pairwise([0, *cuts, len(text)]):
        piece, inside = tokenizer.encode_with_places(text[begin:end])
        ids += piece
        places += [(begin + first, begin + last) for first, last in inside]
    return ids, places


def _span(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    place: int,
    before: str | InputError,
    through: str | InputError,
    text: str,
) -> Span:
    """Where the answer at `place` stands in the text of all messages, from the texts `before` and `through` it."""
    for each in (before, through):
        if isinstance(each, InputError):
            raise each
    assert isinstance(before, str) and isinstance(through, str)
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
