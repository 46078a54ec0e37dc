"""A conversation with a model in this process."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

from synthe_core.chat.conversation import MODEL, SYSTEM, USER, Answer, ChatOptions, Conversation, Reply, Turn
from synthe_core.data import chat_template as chat
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError, WorkError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.outputs import Finished, PrefillFinished, TokenOutput
from synthe_core.inference.request import NotFound, Request
from synthe_core.retrieval.retriever import Retriever
from synthe_core.storage.atomic import write_file

MARK = "\N{RUNIC LETTER OTHALAN ETHEL O}" * 8
"""Stands for an answer in a rendered conversation of which only the end is used."""


class LocalConversation(Conversation):
    """tokens: what the model has read and generated; None if the session is another process's. turn_starts: the
    position in them at which every turn begins."""

    def __init__(
        self,
        engine: AsyncEngine,
        model: str,
        *,
        system: str | None = None,
        session: str | None = None,
        retriever: Retriever | None = None,
    ) -> None:
        self.engine = engine
        self.served = engine.find(model)[0]
        self.tokenizer: Tokenizer = self.served.tokenizer
        self.defaults = self.served.defaults
        super().__init__(model, self.tokenizer.chat_template is not None, system, session, retriever)
        self.tokens: list[int] | None = []
        self.turn_starts: list[int] = []
        if session is not None and session in self.saved_names():
            self.load(session)

    def _generate(self, message: str, options: ChatOptions, *, fresh: bool) -> Answer:
        new_tokens = self._encode(self._with_passages(message))
        prompt = (*(self.tokens or ()), *new_tokens) if fresh else tuple(new_tokens)
        self.turn_starts.append(len(self.tokens or []))
        past = self.engine.sessions.get(self.session).tokens if self.tokens is None else len(self.tokens)
        request = Request(
            self.model,
            prompt,
            max_tokens=self.served.fitting(options.max_tokens, past + len(new_tokens)),
            sampling=options.sampling,
            seed=options.next_seed,
            session_id=self.session,
        )
        handle = self.engine.submit(request)
        self._append(new_tokens)
        outputs = iter(handle)
        text, first, cached = "", 0.0, 0
        end: Finished | None = None
        try:
            while end is None:
                try:
                    match next(outputs):
                        case PrefillFinished(num_cached_tokens=count):
                            cached = count
                        case TokenOutput(token_id=token, text=piece):
                            first = first or time.monotonic()
                            self._append([token])
                            text += piece
                            if piece and not handle.cancelled:
                                yield piece
                        case Finished() as end:
                            pass
                except KeyboardInterrupt:
                    if handle.cancelled:
                        raise
                    handle.cancel()
                    outputs = iter(handle)  # the interrupt has closed the old iterator
        finally:
            if end is None:  # the caller has stopped listening
                handle.cancel()
                while not isinstance(next(iter(handle)), Finished):
                    pass
        if end.reason == "refused":
            raise InputError(end.message)
        if end.reason == "error":
            raise WorkError(f"the answer failed: {end.message}")
        if end.text and not handle.cancelled:
            yield end.text
        seconds = time.monotonic() - first if first else 0.0
        is_saved = end.num_output_tokens > 0 or not fresh if end.reason == "cancelled" else end.reason != "shutdown"
        return Reply(
            text + end.text,
            end.reason,
            end.num_output_tokens,
            end.num_prompt_tokens,
            max(cached, end.num_cached_tokens),
            seconds,
            is_saved,
        )

    def _append(self, tokens: list[int]) -> None:
        if self.tokens is not None:
            self.tokens += tokens

    def _encode(self, message: str) -> list[int]:
        """The tokens of the next turn, up to the beginning of the answer."""
        tokenizer = self.tokenizer
        first = len(self.turns) == 1 and self.tokens is not None
        if not self.has_chat_template:
            begin = [] if tokenizer.begin is None or not first else [tokenizer.begin]
            return begin + tokenizer.encode(message)
        entry = {"role": USER, "content": message}
        if first:
            system = [{"role": SYSTEM, "content": self.system}] if self.system else []
            return tokenizer.encode_marked(chat.render(tokenizer, [*system, entry]))
        before = [{"role": USER, "content": "."}, {"role": MODEL, "content": MARK}]
        _, mark, rest = chat.render(tokenizer, [*before, entry]).partition(MARK)
        if not mark:
            raise InputError("the chat template leaves out older messages", "/reset before every message")
        ends = tokenizer.ends if self.tokens is None else tokenizer.ends & set(self.tokens[-1:])
        read = next((name for name in map(tokenizer.spelling, ends) if rest.startswith(name)), "")
        return tokenizer.encode_after(read or "\n", rest.removeprefix(read))

    def _on_turn_removed(self) -> None:
        if self.turn_starts and len(self.turn_starts) > len(self.turns):
            start = self.turn_starts.pop()
            if self.tokens is not None:
                del self.tokens[start:]

    def _on_reset(self) -> None:
        self.tokens, self.turn_starts = [], []

    def saved_names(self) -> list[str]:
        return [info.id for info in self.engine.sessions.list() if info.model == self.model]

    def load(self, old: str) -> None:
        super().load(old)
        self.tokens = None
        if (text := self._text_path(old)) is not None:
            self._load_text(text, self.engine.sessions.get(old).tokens)

    def _copy(self, old: str, new: str) -> None:
        self.engine.sessions.fork(old, new)
        if (text := self._text_path(old)) is not None and (copy := self._text_path(new)) is not None and text.is_file():
            write_file(copy, text.read_text(encoding="utf-8"))

    def _delete(self, session: str) -> None:
        with suppress(NotFound):
            self.engine.sessions.delete(session)
        if (text := self._text_path(session)) is not None:
            text.unlink(missing_ok=True)

    # The text of a conversation, in a file beside its session

    def _text_path(self, session: str) -> Path | None:
        folder = self.engine.sessions.folder
        return None if folder is None else folder / "texts" / f"{session}.json"

    def _on_saved(self) -> None:
        text = self._text_path(self.session)
        if text is None or self.tokens is None:
            return
        turns = [[turn.message, turn.answer] for turn in self.turns]
        values = {"system": self.system, "turns": turns, "turn_starts": self.turn_starts, "tokens": self.tokens}
        text.parent.mkdir(parents=True, exist_ok=True)
        write_file(text, json.dumps(values, ensure_ascii=False))

    def _load_text(self, path: Path, count: int) -> None:
        """Loads the turns, unless another program has continued the session since."""
        try:
            text = ConversationText.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return
        if len(text.tokens) == count and len(text.turn_starts) == len(text.turns):
            self.turns, self.turn_starts, self.tokens = (
                [Turn(*turn) for turn in text.turns],
                text.turn_starts,
                text.tokens,
            )
            self.system, self.has_history = text.system, True


class ConversationText(BaseModel):
    """The file of a conversation's text."""

    system: str | None
    turns: list[tuple[str, str]]
    turn_starts: list[int]
    tokens: list[int]
