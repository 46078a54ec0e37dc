"""A conversation with a model in this process, through the engine."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

from synthe_core.chat.conversation import MODEL, SYSTEM, USER, Answer, Asked, Said, Talk, Turn
from synthe_core.data import chat_template as chat
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError, WorkError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.outputs import Finished, PrefillFinished, TokenOutput
from synthe_core.inference.request import NotFound, Request
from synthe_core.storage.atomic import write_file

MARK = "\N{RUNIC LETTER OTHALAN ETHEL O}" * 8
"""Stands for an answer in a conversation that only its end is taken of."""


class EngineTalk(Talk):
    """`tokens` are those that the model has read and written, None where another process knows them."""

    def __init__(
        self, engine: AsyncEngine, model: str, *, system: str | None = None, session: str | None = None
    ) -> None:
        self.engine = engine
        self.tokenizer: Tokenizer = engine.find(model)[0].tokenizer
        super().__init__(model, self.tokenizer.chat_template is not None, system, session)
        self.tokens: list[int] | None = []
        self.begun: list[int] = []  # where every turn begins in them
        if session is not None and session in self.kept():
            self.load(session)

    def _write(self, said: str, asked: Asked, *, fresh: bool) -> Answer:
        news = self._encoded(said)
        prompt = (*(self.tokens or ()), *news) if fresh else tuple(news)
        self.begun.append(len(self.tokens or []))
        request = Request(
            self.model,
            prompt,
            max_tokens=asked.count,
            sampling=asked.sampling,
            seed=asked.drawn,
            session_id=self.session,
        )
        ticket = self.engine.submit(request)
        self._reads(news)
        events = iter(ticket)
        text, first, cached = "", 0.0, 0
        end: Finished | None = None
        try:
            while end is None:
                try:
                    match next(events):
                        case PrefillFinished(num_cached_tokens=known):
                            cached = known
                        case TokenOutput(token_id=token, text=piece):
                            first = first or time.monotonic()
                            self._reads([token])
                            text += piece
                            if piece and not ticket.cancelled:
                                yield piece
                        case Finished() as end:
                            pass
                except KeyboardInterrupt:
                    if ticket.cancelled:
                        raise
                    ticket.cancel()
                    events = iter(ticket)  # the interrupt has ended the other
        finally:
            if end is None:  # nobody listens any more: the row is given up before this is left
                ticket.cancel()
                while not isinstance(next(iter(ticket)), Finished):
                    pass
        if end.reason == "refused":
            raise InputError(end.message)
        if end.reason == "error":
            raise WorkError(f"the answer failed: {end.message}")
        if end.text and not ticket.cancelled:
            yield end.text
        seconds = time.monotonic() - first if first else 0.0
        kept = end.num_output_tokens > 0 or not fresh if end.reason == "cancelled" else end.reason != "shutdown"
        return Said(
            text + end.text,
            end.reason,
            end.num_output_tokens,
            end.num_prompt_tokens,
            max(cached, end.num_cached_tokens),
            seconds,
            kept,
        )

    def _reads(self, tokens: list[int]) -> None:
        if self.tokens is not None:
            self.tokens += tokens

    def _encoded(self, said: str) -> list[int]:
        """The tokens of the next turn, the beginning of the answer included."""
        tokenizer = self.tokenizer
        first = len(self.turns) == 1 and self.tokens is not None
        begin = [] if tokenizer.begin is None or not first else [tokenizer.begin]
        if not self.taught:
            return begin + tokenizer.encode(said)
        message = {"role": USER, "content": said}
        if first:
            system = [{"role": SYSTEM, "content": self.system}] if self.system else []
            tokens = tokenizer.encode_marked(chat.render(tokenizer, [*system, message]))
            return tokens if tokens[:1] == begin else begin + tokens
        before = [{"role": USER, "content": "."}, {"role": MODEL, "content": MARK}]
        _, found, rest = chat.render(tokenizer, [*before, message]).partition(MARK)
        if not found:
            raise InputError("the chat template leaves out older messages", "/reset before every message")
        ended = self.tokens is None or self.tokens[-1:] == [tokenizer.end]
        return tokenizer.encode_marked(rest.removeprefix(tokenizer.spelling(tokenizer.end)) if ended else rest)

    def _taken_back(self) -> None:
        if self.begun and len(self.begun) > len(self.turns):
            at = self.begun.pop()
            if self.tokens is not None:
                del self.tokens[at:]

    def _cleared(self) -> None:
        self.tokens, self.begun = [], []

    def kept(self) -> list[str]:
        return [info.id for info in self.engine.sessions.list() if info.model == self.model]

    def load(self, old: str) -> None:
        super().load(old)
        self.tokens = None
        if (text := self._text(old)) is not None:
            self._recall(text, self.engine.sessions.get(old).tokens)

    def _fork(self, old: str, new: str) -> None:
        self.engine.sessions.fork(old, new)
        if (text := self._text(old)) is not None and (copy := self._text(new)) is not None and text.is_file():
            write_file(copy, text.read_text(encoding="utf-8"))

    def _forget(self, session: str) -> None:
        with suppress(NotFound):
            self.engine.sessions.delete(session)
        if (text := self._text(session)) is not None:
            text.unlink(missing_ok=True)

    # The words of a conversation, in a file beside its state

    def _text(self, session: str) -> Path | None:
        folder = self.engine.sessions.folder
        return None if folder is None else folder / "texts" / f"{session}.json"

    def _settled(self) -> None:
        text = self._text(self.session)
        if text is None or self.tokens is None:
            return
        turns = [[turn.said, turn.answer] for turn in self.turns]
        values = {"system": self.system, "turns": turns, "begun": self.begun, "tokens": self.tokens}
        text.parent.mkdir(parents=True, exist_ok=True)
        write_file(text, json.dumps(values, ensure_ascii=False))

    def _recall(self, text: Path, count: int) -> None:
        """Takes the words where they are those of the state, which another program may have gone on with."""
        try:
            said = Text.model_validate_json(text.read_bytes())
        except (OSError, ValueError):
            return
        if len(said.tokens) == count and len(said.begun) == len(said.turns):
            self.turns, self.begun, self.tokens = [Turn(*turn) for turn in said.turns], said.begun, said.tokens
            self.system, self.whole = said.system, True


class Text(BaseModel):
    """What the file of a conversation's words holds."""

    system: str | None
    turns: list[tuple[str, str]]
    begun: list[int]
    tokens: list[int]
