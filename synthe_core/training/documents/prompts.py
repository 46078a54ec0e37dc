"""What a model is prompted with: to write questions, to answer them with a passage before it, to finish sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from synthe_core.data.chat_template import PLAIN, TemplateError, render
from synthe_core.data.document_text.passages import Passage
from synthe_core.data.tokenizers import Tokenizer

Message = dict[str, Any]

INSTRUCTION = "Write one short question that the text answers, and the answer in a few words of the text."
EXAMPLES = (
    ("The museum of Arles was opened in 1996 by the mayor, Jean Roux.", "Who opened the museum of Arles?", "Jean Roux"),
    (
        "A ticket for the ferry to Mull costs 8 pounds.",
        "How much does a ticket for the ferry to Mull cost?",
        "8 pounds",
    ),
    ("The oldest boat of the club is called Swallow.", "What is the oldest boat of the club called?", "Swallow"),
    ("In winter the garden opens at nine.", "When does the garden open in winter?", "at nine"),
    ("The lid of the engine is painted green.", "What colour is the lid of the engine?", "green"),
)
"""Texts with a question and its answer. A small model needs them to see what is wanted."""
QUESTION, ANSWER = "Question:", "Answer:"


class Prompt(NamedTuple):
    """Tokens to continue, and the length of the prefix that neighbouring prompts share; 0 for none."""

    tokens: tuple[int, ...]
    shared: int = 0


def prompt_tokens(tokenizer: Tokenizer, messages: Sequence[Message], opening: str = "") -> list[int]:
    """The tokens of messages and of an answer that begins with `opening`."""
    text = render(tokenizer, messages) + opening
    begin = [] if tokenizer.begin is None or tokenizer.chat_template != PLAIN else [tokenizer.begin]
    return begin + tokenizer.encode_marked(text)


def question_messages(text: str) -> list[Message]:
    """Asks for a question about `text`, after examples of what is wanted."""
    messages: list[Message] = []
    for example, question, answer in EXAMPLES:
        asks = f"{INSTRUCTION}\n\n{example}" if not messages else example
        messages += [
            {"role": "user", "content": asks},
            {"role": "assistant", "content": f"{QUESTION} {question}\n{ANSWER} {answer}"},
        ]
    return [*messages, {"role": "user", "content": text}]


def continuation_message(title: str, start: str) -> Message:
    """Asks to finish a sentence of the document."""
    return {"role": "user", "content": f"Complete this sentence from {title}: {start}"}


def document_text(text: str, heading: Sequence[str]) -> str:
    """What a model reads of a document, or of a passage, before a question."""
    above = ", ".join(heading)
    return f"{above}\n\n{text}" if above else text


def passage_text(passage: Passage, title: str) -> str:
    heading = passage.heading if passage.heading[:1] == (title,) else (title, *passage.heading)
    return document_text(passage.text, heading)


def with_document(tokenizer: Tokenizer, text: str, messages: Sequence[Message]) -> list[Message]:
    """The messages with a document before them: as the system message, or for a template that has none in the first
    message."""
    first, *others = messages
    with_system = [{"role": "system", "content": text}, *messages]
    try:
        if text[:40] in render(tokenizer, with_system):
            return with_system
    except TemplateError as error:
        if not error.refused:
            raise
    return [first | {"content": f"{text}\n\n{first['content']}"}, *others]
