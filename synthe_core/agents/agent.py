"""An agent with a model in this process."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from synthe_core.agents.run import AgentCall, AgentLimits, AgentRun
from synthe_core.agents.tool import Tool, described, run_tool
from synthe_core.data import chat_template as chat
from synthe_core.data.tool_calls.format import tool_format
from synthe_core.data.tool_calls.parser import Piece, TextPiece, ToolCallParser
from synthe_core.data.tool_calls.plain_messages import for_template
from synthe_core.data.tool_calls.schema import FunctionSchema, call_schema
from synthe_core.data.tool_calls.style_parsers import parser_for
from synthe_core.errors import InputError, WorkError
from synthe_core.inference.async_engine import AsyncEngine, RequestHandle
from synthe_core.inference.outputs import Finished, PrefillFinished, TokenOutput
from synthe_core.inference.request import Request, ToolUse
from synthe_core.inference.sampling_params import SamplingParams

PLAIN_STOP = ("\nUser:",)


@dataclass(frozen=True)
class CallMade:
    """The agent calls a tool."""

    call: AgentCall


@dataclass(frozen=True)
class ResultRead:
    """The result of a call."""

    call: AgentCall
    text: str


AgentEvent = TextPiece | CallMade | ResultRead
Attempt = Generator[AgentEvent, None, AgentRun]


@dataclass
class _Answer:
    """An answer while it is read."""

    text: str = ""
    calls: dict[int, AgentCall] = field(default_factory=dict)
    complete: set[int] = field(default_factory=set)

    def add(self, piece: Piece) -> None:
        if isinstance(piece, TextPiece):
            self.text += piece.text
            return
        if piece.name is not None:
            self.calls[piece.index] = AgentCall(f"call_{secrets.token_hex(12)}", piece.name, "")
        call = self.calls[piece.index]
        self.calls[piece.index] = AgentCall(call.id, call.name, call.arguments + piece.arguments)
        self.complete |= {piece.index} if piece.complete else set()


class Agent:
    """Answers with tools: model, calls, results, model, within limits.

    max_tokens: of each answer. required: whether the first answer must be a call.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        model: str,
        tools: Sequence[Tool],
        *,
        limits: AgentLimits | None = None,
        sampling: SamplingParams | None = None,
        max_tokens: int = 1024,
        required: bool = False,
    ) -> None:
        self.engine, self.model, self.tools = engine, model, list(tools)
        self.served = engine.find(model)[0]
        self.limits, self.max_tokens, self.required = limits or AgentLimits(), max_tokens, required
        self.sampling = sampling or SamplingParams()
        self.form = tool_format(self.served.tokenizer.chat_template)
        functions = [FunctionSchema(each.name, each.parameters) for each in self.tools]
        self._schema = call_schema(self.form, functions, parallel=True) if functions else None

    def run(self, messages: Sequence[Mapping[str, Any]], *, attempts: int = 1, seed: int = 0) -> list[AgentRun]:
        """Several attempts at a time, attempt i with seed + i, with the log-probabilities by which `choose` compares
        them. They share the state after the prompt, which is computed once. A KeyboardInterrupt ends all."""
        cancelled = [threading.Event() for _ in range(attempts)]
        with ThreadPoolExecutor(attempts) as threads:
            try:
                return list(threads.map(lambda i: self._last(messages, seed + i, cancelled[i]), range(attempts)))
            except BaseException:
                for each in cancelled:
                    each.set()
                raise

    def _last(self, messages: Sequence[Mapping[str, Any]], seed: int, cancelled: threading.Event) -> AgentRun:
        attempt = self.attempt(messages, seed=seed, cancelled=cancelled, return_logprob=True)
        while True:
            try:
                next(attempt)
            except StopIteration as end:
                run: AgentRun = end.value
                return run

    def attempt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        seed: int = 0,
        cancelled: threading.Event | None = None,
        return_logprob: bool = False,
    ) -> Attempt:
        """Yields what happens, and returns the run. Closed before its end, it cancels what is under way.

        return_logprob: whether the run has the log-probabilities of its tokens.
        """
        cancelled = cancelled or threading.Event()
        run = AgentRun([dict(each) for each in messages], described(self.tools), self.limits)
        try:
            while run.check_limits(cancelled=cancelled.is_set()):
                calls = yield from self._answer(run, self._request(run, seed, return_logprob), cancelled)
                for call in calls:
                    yield CallMade(call)
                    text = run_tool(self.tools, call.name, call.arguments, cancelled)
                    run.add_result(call, text)
                    yield ResultRead(call, text)
        finally:
            cancelled.set()
        return run

    def _answer(
        self, run: AgentRun, request: Request, cancelled: threading.Event
    ) -> Generator[AgentEvent, None, list[AgentCall]]:
        """One answer of the model, added to the run; returns its calls."""
        handle = self.engine.submit(request)
        answer, parser = _Answer(), self._parser()
        end: Finished | None = None
        try:
            for output in handle:
                if cancelled.is_set() and not isinstance(output, Finished):
                    return []
                pieces: list[Piece] = []
                if isinstance(output, PrefillFinished):
                    run.num_prompt_tokens += output.num_prompt_tokens
                    run.num_cached_tokens += output.num_cached_tokens
                elif isinstance(output, TokenOutput):
                    run.sum_logprob += 0.0 if output.logprob is None else output.logprob.logprob
                    pieces = self._pieces(parser, output)
                elif isinstance(output, Finished):
                    end = output
                    pieces = parser.push(output.text) + parser.flush()
                for piece in pieces:
                    answer.add(piece)
                    if isinstance(piece, TextPiece):
                        yield piece
        finally:
            if end is None:
                _give_up(handle)
        assert end is not None
        _check(end)
        calls = [call for index, call in answer.calls.items() if index in answer.complete]
        run.add_answer(answer.text, calls, end.num_output_tokens, cut=end.reason == "length")
        return calls

    def _parser(self) -> ToolCallParser:
        return ToolCallParser(self.form) if self._schema is None else parser_for(self.form, self._schema)

    def _pieces(self, parser: ToolCallParser, output: TokenOutput) -> list[Piece]:
        tokenizer = self.served.tokenizer
        mark = self.form.opening.strip()
        token = output.token_id
        is_mark = mark and not tokenizer.bytes_of([token]) and tokenizer.spelling(token) == mark
        return (parser.open() if is_mark else []) + parser.push(output.text)

    def _request(self, run: AgentRun, seed: int, return_logprob: bool) -> Request:
        tokenizer = self.served.tokenizer
        messages, tools = for_template(tokenizer, run.messages, run.tools)
        is_plain = tokenizer.chat_template is None
        if is_plain:
            text = chat.render_trusted(chat.PLAIN, messages)
            begin = [] if tokenizer.begin is None else [tokenizer.begin]
            tokens = (*begin, *tokenizer.encode(text))
        else:
            tokens = tuple(tokenizer.encode_marked(chat.render(tokenizer, messages, variables={"tools": tools})))
        required = self.required and not run.num_steps
        use = None if self._schema is None else ToolUse(self.form, self._schema, required)
        limit = min(self.max_tokens, run.remaining_tokens)
        return Request(
            self.model,
            tokens,
            max_tokens=self.served.fitting(limit, len(tokens)),
            sampling=self.sampling,
            seed=seed,
            stop=PLAIN_STOP if is_plain else (),
            return_logprob=return_logprob,
            tool_use=use,
        )


def _give_up(handle: RequestHandle) -> None:
    handle.cancel()
    for _ in handle:
        pass


def _check(end: Finished) -> None:
    if end.reason == "refused":
        raise InputError(end.message)
    if end.reason in ("error", "shutdown"):
        raise WorkError(f"the answer failed: {end.message or 'the engine stops'}")
