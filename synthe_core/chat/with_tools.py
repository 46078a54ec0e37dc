"""A conversation with a model in this process that calls tools."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from synthe_core.agents.agent import Agent, Attempt, CallMade, ResultRead
from synthe_core.agents.choice import choose
from synthe_core.agents.run import AgentCall, AgentLimits, AgentRun
from synthe_core.agents.tool import Tool
from synthe_core.chat.conversation import SYSTEM, USER, Answer, ChatOptions, Conversation, Reply
from synthe_core.data.tool_calls.parser import TextPiece
from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.retrieval.retriever import Retriever

SHOWN = 2000
"""Characters of a result that are shown; the model reads more."""


class ToolConversation(Conversation):
    """Each message starts an agent's run. Every turn reads the conversation from the beginning, of which the prefix
    cache has the state; it is not saved.

    transcripts: a file to which each run is added as a line that `synthe train` reads with the objective sft. attempts:
    at each answer, of which the best is the answer; then it is not yielded while it is generated.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        model: str,
        tools: Sequence[Tool],
        *,
        system: str | None = None,
        limits: AgentLimits | None = None,
        transcripts: Path | None = None,
        attempts: int = 1,
        retriever: Retriever | None = None,
    ) -> None:
        self.engine, self.tools, self.limits = engine, list(tools), limits
        served = engine.find(model)[0]
        self.defaults = served.defaults
        super().__init__(model, served.tokenizer.chat_template is not None, system, retriever=retriever)
        self._file, self.attempts = transcripts, attempts
        self._transcripts: list[list[dict[str, Any]]] = []

    def _generate(self, message: str, options: ChatOptions, *, fresh: bool) -> Answer:
        agent = Agent(
            self.engine,
            self.model,
            self.tools,
            limits=self.limits,
            sampling=options.sampling,
            max_tokens=options.max_tokens,
        )
        self._transcripts.append([{"role": USER, "content": self._with_passages(message)}])
        if self.attempts > 1:
            return (yield from self._best_of(agent, options))
        attempt = agent.attempt(self._messages(), seed=options.next_seed)
        began, text = time.monotonic(), ""
        try:
            while True:
                try:
                    piece = _shown(attempt)
                except StopIteration as end:
                    run: AgentRun = end.value
                    break
                text += piece
                if piece:
                    yield piece
        except KeyboardInterrupt:
            attempt.close()
            return Reply(text, "cancelled", 0, 0, 0, time.monotonic() - began, False)
        self._transcripts[-1] += [dict(each) for each in run.transcript()]
        self._write(run)
        seconds = time.monotonic() - began
        reason = "stop" if run.ending == "answer" else run.ending or "stop"
        return Reply(text, reason, run.num_tokens, run.num_prompt_tokens, run.num_cached_tokens, seconds, False)

    def _best_of(self, agent: Agent, options: ChatOptions) -> Answer:
        if options.sampling.temperature == 0:
            raise InputError("all attempts are the same at temperature 0", "set --temperature above 0")
        began = time.monotonic()
        try:
            runs = agent.run(self._messages(), attempts=self.attempts, seed=options.next_seed)
        except KeyboardInterrupt:
            return Reply("", "cancelled", 0, 0, 0, time.monotonic() - began, False)
        run, agreeing = choose(runs)
        text = "".join(_texts_of(run))
        yield text
        self._transcripts[-1] += [dict(each) for each in run.transcript()]
        self._write(run)
        tokens, prompt, cached = (
            sum(getattr(each, name) for each in runs)
            for name in ("num_tokens", "num_prompt_tokens", "num_cached_tokens")
        )
        reason = "stop" if run.ending == "answer" else run.ending or "stop"
        return Reply(text, reason, tokens, prompt, cached, time.monotonic() - began, False, agreeing)

    def _messages(self) -> list[dict[str, Any]]:
        system = [{"role": SYSTEM, "content": self.system}] if self.system else []
        return [*system, *(message for turn in self._transcripts for message in turn)]

    def _write(self, run: AgentRun) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run.row(), ensure_ascii=False) + "\n")

    def _on_turn_removed(self) -> None:
        if len(self._transcripts) > len(self.turns):
            self._transcripts.pop()

    def _on_reset(self) -> None:
        self._transcripts = []

    def saved_names(self) -> list[str]:
        return []

    def _copy(self, old: str, new: str) -> None:
        """Never called: nothing is saved."""

    def _delete(self, session: str) -> None:
        """Nothing is saved."""


def _shown(attempt: Attempt) -> str:
    """The next event as text."""
    match next(attempt):
        case TextPiece(text):
            return text
        case CallMade(call):
            return _call_text(call)
        case ResultRead(_, text):
            return _result_text(text)


def _texts_of(run: AgentRun) -> Iterator[str]:
    """What `_shown` would have given of a run."""
    for message in run.transcript():
        if message["role"] == "tool":
            yield _result_text(message["content"])
            continue
        yield message["content"]
        for each in message.get("tool_calls", ()):
            yield _call_text(AgentCall(each["id"], **each["function"]))


def _call_text(call: AgentCall) -> str:
    return f"\n[{call.name}] {_argument(call)}\n"


def _result_text(text: str) -> str:
    return f"{text[:SHOWN].rstrip()}\n[end of the result]\n"


def _argument(call: AgentCall) -> str:
    """The arguments of a call: those of one text as this text."""
    values = json.loads(call.arguments)
    only = next(iter(values.values())) if isinstance(values, dict) and len(values) == 1 else None
    return only.rstrip() if isinstance(only, str) else call.arguments
