"""A conversation with a model, turn by turn, wherever the model is: each turn reads what is new, and nothing twice."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field

from synthe_core.errors import InputError, SyntheError, unknown
from synthe_core.inference.sampling_params import SamplingParams

SYSTEM, USER, MODEL = "system", "user", "assistant"


@dataclass(frozen=True)
class Asked:
    """How an answer is to be written: at most `count` tokens, drawn with `seed`, or by chance where it is None."""

    count: int = 400
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int | None = None

    @property
    def drawn(self) -> int:
        return secrets.randbits(32) if self.seed is None else self.seed


@dataclass(frozen=True)
class Said:
    """An answer, and what it took.

    cached: tokens of the prompt that were known. seconds: since its first token. kept: whether what is kept of the
    conversation, where the model is, ends with this answer; or, where nothing was answered, as it did before.
    """

    text: str
    reason: str
    tokens: int
    prompt: int
    cached: int
    seconds: float
    kept: bool

    @property
    def rate(self) -> float:
        """Tokens a second, after the first."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else 0.0


@dataclass
class Turn:
    """What was said, and what was answered."""

    said: str
    answer: str = ""


Answer = Generator[str, None, Said]
"""Text as it comes; it returns how it went. KeyboardInterrupt while it works stops the model, and the answer ends."""


class Talk(ABC):
    """taught: whether the model knows messages; if not, what is said is text that it goes on from.

    session: the name under which the conversation is kept where the model is. in_step: whether what is kept under that
    name is this conversation; where it is not, the next turn reads it from the beginning. whole: whether the beginning
    is known here.
    """

    def __init__(self, model: str, taught: bool, system: str | None = None, session: str | None = None) -> None:
        self.model, self.taught, self.system = model, taught, system
        self.session = session or name()
        self.own = session is None  # nobody has named it: it goes when the conversation ends
        self.in_step, self.whole = False, True
        self.turns: list[Turn] = []
        self.copies = set[str]()  # names that this conversation was saved under, and may be saved under again
        if system is not None and not taught:
            raise InputError(f"{model} has no chat template, and so no place for a system prompt", "leave it out")

    # What a model's place has to offer

    @abstractmethod
    def _write(self, said: str, asked: Asked, *, fresh: bool) -> Answer:
        """Reads `said`, and with `fresh` all that was before it, and answers."""

    @abstractmethod
    def kept(self) -> list[str]:
        """The names of conversations that can be gone on with."""

    @abstractmethod
    def _fork(self, old: str, new: str) -> None:
        """Keeps a copy of `old` as `new`."""

    @abstractmethod
    def _forget(self, session: str) -> None:
        """Drops what is kept, if anything is."""

    def _cleared(self) -> None:  # noqa: B027 (where turns are all there is)
        """All turns are gone."""

    def _taken_back(self) -> None:  # noqa: B027
        """The last turn is gone."""

    def _settled(self) -> None:  # noqa: B027
        """The last turn is kept."""

    # Turns

    def say(self, text: str, asked: Asked) -> Answer:
        """Says `text` and gives the answer as it comes; what is stopped after its first token counts as said."""
        if not text and (self.taught or not (self.turns or self.in_step)):
            raise InputError("there is nothing to go on from", "say something first")
        return self._answer(text, asked)

    def _answer(self, text: str, asked: Asked) -> Answer:
        in_step, self.in_step = self.in_step, False
        if not in_step:
            self._check_whole()
            self._forget(self.session)
        turn = Turn(text)
        self.turns.append(turn)
        written = self._write(text, asked, fresh=not in_step)
        try:
            with closing(written):
                said = yield from self._noted(turn, written)
        except SyntheError:
            self.turns.pop()
            self._taken_back()
            self.in_step = in_step and not turn.answer
            raise
        self.in_step = said.kept
        if not said.tokens and said.reason == "cancelled":  # as if it had not been said
            self.turns.pop()
            self._taken_back()
        elif self.in_step:
            self._settled()
        return said

    def _noted(self, turn: Turn, written: Answer) -> Answer:
        interrupted = False
        while True:
            try:
                piece = written.throw(KeyboardInterrupt) if interrupted else next(written)
            except StopIteration as end:
                said: Said = end.value
                return said
            turn.answer += piece
            try:
                yield piece
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True

    def again(self, asked: Asked) -> Answer:
        """The last turn once more, as if its answer had not been."""
        if not self.turns:
            raise InputError("there is no answer to write again", "say something first")
        self._check_whole()
        said = self.turns.pop().said
        self._taken_back()
        self.in_step = False
        return self._answer(said, asked)

    def reset(self, system: str | None = None) -> None:
        """Begins anew, under the same name; with another system prompt where one is given."""
        if system is not None and not self.taught:
            raise InputError(f"{self.model} has no chat template, and so no place for a system prompt")
        self.turns.clear()
        self._cleared()
        self._forget(self.session)
        self.in_step, self.whole = False, True
        self.system = self.system if system is None else system or None

    # Names

    def save(self, new: str) -> None:
        """Keeps a copy of the conversation as it stands under a name."""
        if new == self.session:
            raise InputError(f"this conversation is '{new}' already", "it is kept after every turn")
        if new not in self.copies and new in self.kept():
            raise InputError(f"another conversation is named '{new}' already", "choose another name")
        self._settle()
        self._forget(new)
        self._fork(self.session, new)
        self.copies.add(new)

    def fork(self, new: str) -> None:
        """Goes on under another name; the old one stays as it is."""
        if new in self.kept():
            raise InputError(f"there is a conversation named '{new}' already", "/load goes on with it")
        self._settle()
        self._fork(self.session, new)
        if self.own:
            self._forget(self.session)
        self.session, self.own = new, False

    def load(self, old: str) -> None:
        """Goes on with a conversation that is kept."""
        names = self.kept()
        if old not in names:
            raise unknown("conversation", old, names) if names else InputError("no conversation is kept here yet")
        if self.own and old != self.session:
            self._forget(self.session)
        self.turns.clear()
        self._cleared()
        self.session, self.own, self.in_step, self.whole = old, False, True, False

    def _check_whole(self) -> None:
        if not self.whole:
            raise InputError(
                "the beginning of this conversation is not known here", "it can be gone on with, not redone"
            )

    def _settle(self) -> None:
        if not self.in_step:
            raise InputError("there is nothing to keep yet", "a conversation is kept after a whole answer")

    def close(self) -> None:
        """Ends the conversation; one that nobody has named is dropped."""
        if self.own:
            self._forget(self.session)


def name() -> str:
    """A name that no other conversation has."""
    return f"chat-{secrets.token_hex(4)}"
