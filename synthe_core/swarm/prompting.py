"""What a specialist reads: its system prompt and documents, what is known of the user, and the conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthe_core.data import chat_template as chat
from synthe_core.data.document_text import read_document
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.inference.request import ContextLengthExceeded
from synthe_core.swarm.spec import SpecialistSpec

Message = Mapping[str, str]
"""{"role", "content"}."""
MAX_DOCUMENT = 4 << 20
"""Bytes of a document's text."""
PLAIN_STOP = "\nUser:"
"""Where an answer ends that has no chat template."""


@dataclass(frozen=True)
class Prompt:
    """token_ids, the stop strings of the template, and after how many tokens the text differs between requests."""

    token_ids: tuple[int, ...]
    stop: tuple[str, ...] = ()
    shared: int = 0


class PromptWriter:
    """Writes the prompts of one specialist.

    system: what every prompt of it begins with. alignment: where a prompt may be cut, see `SchedulerConfig`.
    max_length: tokens that the model reads; a text that has more for sure is refused before they are counted.
    prefix: tokens that all its prompts begin with, whatever is known of the user, up to where they may be cut; their
            state is computed once. pending: the token that follows in all of them; None for no prefix.
    """

    def __init__(self, tokenizer: Tokenizer, system: str, alignment: int = 1, max_length: int | None = None) -> None:
        self._tokenizer, self.system, self._max_length = tokenizer, system, max_length
        self._max_characters = None if max_length is None else max_length * max(1, int(tokenizer.widths.max()))
        self.prefix, self.pending = tuple[int, ...](), None
        if system:
            texts = (("one", ""), ("2", ""), ("2", "What is known"))
            first, *others = (self._encode([{"role": "user", "content": said}], known) for said, known in texts)
            common = min(_common(first, other) for other in others)
            length = max(0, common - 1) // alignment * alignment
            if length:
                self.prefix, self.pending = first[:length], first[length]

    def __call__(self, messages: Sequence[Message], facts: str = "") -> Prompt:
        """The prompt of a conversation, whose last message is the user's. facts: what is known, in words.

        ContextLengthExceeded for a conversation that is much too long.
        """
        characters = sum(len(each["content"]) for each in messages)
        if self._max_characters is not None and characters > self._max_characters:
            raise ContextLengthExceeded(
                f"the conversation is longer than the {self._max_length} tokens that the model reads",
                "shorten it, or leave out its older turns",
            )
        token_ids = self._encode(messages, facts)
        shared = len(self.prefix) if token_ids[: len(self.prefix)] == self.prefix else 0
        return Prompt(token_ids, self._stop, shared if shared < len(token_ids) else 0)

    @property
    def _stop(self) -> tuple[str, ...]:
        return (PLAIN_STOP,) if self._tokenizer.chat_template is None else ()

    def _encode(self, messages: Sequence[Message], facts: str) -> tuple[int, ...]:
        tokenizer = self._tokenizer
        given = [each["content"] for each in messages if each["role"] == "system"]
        system = "\n\n".join(filter(None, (self.system, *given, facts)))
        turns = [dict(each) for each in messages if each["role"] != "system"]
        if system:
            turns.insert(0, {"role": "system", "content": system})
        if tokenizer.chat_template is None:
            begin = () if tokenizer.begin is None else (tokenizer.begin,)
            return (*begin, *tokenizer.encode(chat.render_trusted(chat.PLAIN, turns)))
        return tuple(tokenizer.encode_marked(chat.render(tokenizer, turns)))


def system_text(name: str, spec: SpecialistSpec, resolve: Mapping[str, str]) -> str:
    """A specialist's system prompt and, after it, its documents: text, Markdown, HTML, PDF or Word. resolve: the path
    of each of them."""
    parts = [spec.prompt.strip()]
    for document in spec.documents:
        path = Path(resolve[document])
        try:
            text = read_document(path).text.strip()
        except InputError as error:
            raise InputError(f"{name} cannot read its document: {error.message}", error.hint) from None
        if len(text.encode()) > MAX_DOCUMENT:
            raise InputError(f"{path} has more than {MAX_DOCUMENT >> 20} MiB of text", f"give {name} a part of it")
        parts.append(f"{path.name}:\n{text}")
    return "\n\n".join(filter(None, parts))


def last_request(messages: Sequence[Message]) -> str:
    """The user's last message, which is what is routed. InputError if there is none."""
    for message in reversed(messages):
        if message["role"] == "user" and message["content"].strip():
            return message["content"]
    raise InputError("there is no request in these messages", "the last message of the user is what is answered")


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with together."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
