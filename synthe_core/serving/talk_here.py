"""A conversation with a model in this process, through the engine."""

from __future__ import annotations

import time

from synthe_core.data import chat
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError, WorkError
from synthe_core.serving.engine import Engine
from synthe_core.serving.request import Finished, NoSuch, Request, Started, Written
from synthe_core.serving.talk import MODEL, SYSTEM, USER, Answer, Asked, Said, Talk

MARK = "\N{RUNIC LETTER OTHALAN ETHEL O}" * 8
"""Stands for an answer in a conversation that only its end is taken of."""


class EngineTalk(Talk):
    """`tokens` are those that the model has read and written, None where another process knows them."""

    def __init__(self, engine: Engine, model: str, *, system: str | None = None, session: str | None = None) -> None:
        self.engine = engine
        self.tokenizer: Tokenizer = engine.find(model)[0].tokenizer
        super().__init__(model, self.tokenizer.chat_template is not None, system, session)
        self.tokens: list[int] | None = []
        self.begun: list[int] = []  # where every turn begins in them
        if session is not None and session in self.kept():
            self.load(session)

    def _write(self, said: str, asked: Asked, *, fresh: bool) -> Answer:
        if fresh and self.tokens is None:
            raise InputError(
                "this conversation cannot be gone on with: its last turn was broken off, and another program began it",
                "/reset begins anew",
            )
        news = self._encoded(said)
        prompt = tuple((self.tokens or []) + news) if fresh else tuple(news)
        self.begun.append(len(self.tokens or []))
        request = Request(
            self.model, prompt, count=asked.count, sampling=asked.sampling, seed=asked.drawn, session=self.session
        )
        ticket = self.engine.submit(request)
        self._reads(news)
        events = iter(ticket)
        text, first, cached = "", 0.0, 0
        while True:
            try:
                match next(events):
                    case Started(cached=known):
                        cached = known
                    case Written(token=token, text=piece):
                        first = first or time.monotonic()
                        self._reads([token])
                        text += piece
                        if piece and not ticket.cancelled:
                            yield piece
                    case Finished() as end:
                        break
            except KeyboardInterrupt:
                if ticket.cancelled:
                    raise
                ticket.cancel()
                events = iter(ticket)  # the interrupt has ended the other
        if end.reason == "failed":
            raise WorkError(f"the answer failed: {end.message}")
        if end.text and not ticket.cancelled:
            yield end.text
        seconds = time.monotonic() - first if first else 0.0
        kept = end.written > 0 or not fresh if end.reason == "cancelled" else end.reason != "shutdown"
        return Said(text + end.text, end.reason, end.written, end.prompt, max(cached, end.cached), seconds, kept)

    def _reads(self, tokens: list[int]) -> None:
        if self.tokens is not None:
            self.tokens += tokens

    def _encoded(self, said: str) -> list[int]:
        """The tokens of the next turn, the beginning of the answer included."""
        tokenizer = self.tokenizer
        first = len(self.turns) == 1 and self.tokens is not None
        begin = [] if tokenizer.begin is None or not first else [tokenizer.begin]
        if not self.taught:
            tokens = begin + tokenizer.encode(said)
            return tokens
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

    def load(self, old: str) -> None:
        super().load(old)
        self.tokens = None

    def reset(self, system: str | None = None) -> None:
        super().reset(system)
        self.tokens = []

    def kept(self) -> list[str]:
        base = self.model
        return [info.id for info in self.engine.sessions.list() if info.model == base]

    def _fork(self, old: str, new: str) -> None:
        self.engine.sessions.fork(old, new)

    def _forget(self, session: str) -> None:
        try:
            self.engine.sessions.delete(session)
        except NoSuch:
            return
