"""A conversation with a model, here or on a server. Each turn reads only what is new."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from synthe_core.errors import InputError, SyntheError, unknown
from synthe_core.inference.generation_defaults import GenerationDefaults
from synthe_core.inference.sampling_params import SamplingParams

if TYPE_CHECKING:
    from synthe_core.retrieval.retriever import Retriever
    from synthe_core.retrieval.search import SearchResult

SYSTEM, USER, MODEL = "system", "user", "assistant"


@dataclass(frozen=True)
class ChatOptions:
    """Options of an answer: at most `max_tokens` tokens, sampled with `seed` (None: a random one for each answer)."""

    max_tokens: int = 400
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int | None = None

    @property
    def next_seed(self) -> int:
        return secrets.randbits(32) if self.seed is None else self.seed


@dataclass(frozen=True)
class Reply:
    """An answer and its figures.

    reason: why it ended. prompt, cached: tokens of the prompt, and those that were not computed. seconds: since its
    first token. is_saved: whether the saved conversation ends with this answer, or, if nothing was generated, is
    unchanged. agreeing: how many of several attempts have this answer.
    """

    text: str
    reason: str
    tokens: int
    prompt: int
    cached: int
    seconds: float
    is_saved: bool
    agreeing: int | None = None

    @property
    def rate(self) -> float:
        """Tokens per second after the first."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else 0.0


@dataclass
class Turn:
    """A message and its answer. passages: of documents, that the model read before the message."""

    message: str
    answer: str = ""
    passages: list[SearchResult] = field(default_factory=list)


Answer = Generator[str, None, Reply]
"""Yields text as it is generated, and returns the reply. A KeyboardInterrupt thrown into it stops the generation."""


class Conversation(ABC):
    """has_chat_template: whether the model knows messages; without one it continues the text of the message.

    session:      the name of the saved conversation.
    is_saved:     whether the session is this conversation; if not, the next turn reads it from the beginning.
    defaults:     the sampling that the model's publisher recommends.
    is_temporary: whether the session has no name of the user's, and is deleted at the end.
    has_history:  whether all turns are known here.
    copies:       names under which this conversation was saved, and may be saved again.
    retriever:    what gives each message passages of documents; None without documents.
    """

    defaults = GenerationDefaults()

    def __init__(
        self,
        model: str,
        has_chat_template: bool,
        system: str | None = None,
        session: str | None = None,
        retriever: Retriever | None = None,
    ) -> None:
        self.model, self.has_chat_template, self.system = model, has_chat_template, system
        self.session = session or new_name()
        self.is_temporary = session is None
        self.is_saved, self.has_history = False, True
        self.turns: list[Turn] = []
        self.copies = set[str]()
        self.retriever = retriever
        if retriever is not None and not has_chat_template:
            raise InputError(f"{model} has no chat template, and so no place for passages", "leave --documents out")
        if system is not None and not has_chat_template:
            raise InputError(f"{model} has no chat template, and so no place for a system prompt", "leave it out")

    # What a subclass defines

    @abstractmethod
    def _generate(self, message: str, options: ChatOptions, *, fresh: bool) -> Answer:
        """Reads the message, with `fresh` all turns before it too, and generates the answer."""

    @abstractmethod
    def saved_names(self) -> list[str]:
        """The names of the saved conversations."""

    @abstractmethod
    def _copy(self, old: str, new: str) -> None:
        """Copies the session `old` to `new`."""

    @abstractmethod
    def _delete(self, session: str) -> None:
        """Deletes a session, if it exists."""

    def _on_reset(self) -> None:  # noqa: B027 (nothing to do in some subclasses)
        """Called when all turns are removed."""

    def _on_turn_removed(self) -> None:  # noqa: B027
        """Called when the last turn is removed."""

    def _on_saved(self) -> None:  # noqa: B027
        """Called when the last turn is saved."""

    # Turns

    def send(self, text: str, options: ChatOptions) -> Answer:
        """Sends a message and yields the answer. An answer that is stopped after its first token is a turn too."""
        if not text and (self.has_chat_template or not (self.turns or self.is_saved)):
            raise InputError("there is nothing to continue", "write a message first")
        return self._answer(text, options)

    def _answer(self, text: str, options: ChatOptions) -> Answer:
        is_saved, self.is_saved = self.is_saved, False
        if not is_saved:
            self._check_history()
            self._delete(self.session)
        turn = Turn(text)
        self.turns.append(turn)
        pieces = self._generate(text, options, fresh=not is_saved)
        try:
            with closing(pieces):
                reply = yield from self._record(turn, pieces)
        except SyntheError:
            self.turns.pop()
            self._on_turn_removed()
            self.is_saved = is_saved and not turn.answer
            raise
        self.is_saved = reply.is_saved
        if not reply.tokens and reply.reason == "cancelled":  # as if the message had not been sent
            self.turns.pop()
            self._on_turn_removed()
        elif self.is_saved:
            self._on_saved()
        return reply

    def _record(self, turn: Turn, pieces: Answer) -> Answer:
        """Adds the pieces to the turn, and passes an interrupt on."""
        interrupted = False
        while True:
            try:
                piece = pieces.throw(KeyboardInterrupt) if interrupted else next(pieces)
            except StopIteration as end:
                reply: Reply = end.value
                return reply
            turn.answer += piece
            try:
                yield piece
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True

    def _with_passages(self, message: str) -> str:
        """The last turn's message as the model reads it: after the passages that belong to it."""
        if self.retriever is None:
            return message
        from synthe_core.retrieval.prompt import with_passages

        *before, turn = self.turns
        turn.passages = self.retriever.retrieve(message, before[-1].message if before else "")
        return with_passages(message, turn.passages)

    def regenerate(self, options: ChatOptions) -> Answer:
        """Answers the last message again."""
        if not self.turns:
            raise InputError("there is no answer to write again", "write a message first")
        self._check_history()
        message = self.turns.pop().message
        self._on_turn_removed()
        self.is_saved = False
        return self._answer(message, options)

    def reset(self, system: str | None = None) -> None:
        """Removes all turns, and sets the system prompt if one is given."""
        if system is not None and not self.has_chat_template:
            raise InputError(f"{self.model} has no chat template, and so no place for a system prompt")
        self.turns.clear()
        self._on_reset()
        self._delete(self.session)
        self.is_saved, self.has_history = False, True
        self.system = self.system if system is None else system or None

    # Names

    def save(self, new: str) -> None:
        """Saves a copy of the conversation under a name."""
        if new == self.session:
            raise InputError(f"this conversation is '{new}' already", "it is saved after every turn")
        if new not in self.copies and new in self.saved_names():
            raise InputError(f"another conversation is named '{new}' already", "choose another name")
        self._require_saved()
        self._delete(new)
        self._copy(self.session, new)
        self.copies.add(new)

    def fork(self, new: str) -> None:
        """Continues under another name; the old session stays unchanged."""
        if new in self.saved_names():
            raise InputError(f"there is a conversation named '{new}' already", "/load continues it")
        self._require_saved()
        self._copy(self.session, new)
        if self.is_temporary:
            self._delete(self.session)
        self.session, self.is_temporary = new, False

    def load(self, old: str) -> None:
        """Continues a saved conversation."""
        names = self.saved_names()
        if old not in names:
            raise unknown("conversation", old, names) if names else InputError("no conversation is kept here yet")
        if self.is_temporary and old != self.session:
            self._delete(self.session)
        self.turns.clear()
        self._on_reset()
        self.session, self.is_temporary, self.is_saved, self.has_history = old, False, True, False

    def _check_history(self) -> None:
        if not self.has_history:
            raise InputError(
                "the beginning of this conversation is not known here", "it can be continued, not repeated"
            )

    def _require_saved(self) -> None:
        if not self.is_saved:
            raise InputError("there is nothing to keep yet", "a conversation is saved after a complete answer")

    def close(self) -> None:
        """Ends the conversation; a temporary session is deleted."""
        if self.is_temporary:
            self._delete(self.session)


def new_name() -> str:
    """A name that no other conversation has."""
    return f"chat-{secrets.token_hex(4)}"
