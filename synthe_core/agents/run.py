"""An agent's run: its messages, what it may still take, and why it ended; what generates and runs tools is outside."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Ending = Literal["answer", "length", "steps", "tokens", "seconds", "cancelled"]


@dataclass(frozen=True)
class AgentLimits:
    """steps: answers of the model. tokens: that it writes in all of them. seconds: by the clock."""

    steps: int = 8
    tokens: int = 4096
    seconds: float = 120.0


@dataclass(frozen=True)
class AgentCall:
    """A call that an answer has. arguments: JSON."""

    id: str
    name: str
    arguments: str

    def json(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass
class AgentRun:
    """messages: the conversation so far, OpenAI's. num_given: of its beginning that the caller gave. sum_logprob: of
    the tokens that the model generated, in nats, where they were returned. ending: None while it runs."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    limits: AgentLimits = field(default_factory=AgentLimits)
    num_steps: int = 0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    sum_logprob: float = 0.0
    ending: Ending | None = None

    def __post_init__(self) -> None:
        self.num_given = len(self.messages)
        self.deadline = time.monotonic() + self.limits.seconds

    @property
    def remaining_tokens(self) -> int:
        return self.limits.tokens - self.num_tokens

    @property
    def mean_logprob(self) -> float:
        """Of the tokens that the model generated, in nats; -infinity without any."""
        return self.sum_logprob / self.num_tokens if self.num_tokens else -math.inf

    @property
    def text(self) -> str:
        """The last answer."""
        last = self.messages[-1] if len(self.messages) > self.num_given else {}
        return str(last.get("content") or "") if last.get("role") == "assistant" else ""

    def add_answer(self, text: str, calls: Sequence[AgentCall], num_tokens: int, *, cut: bool = False) -> None:
        """Adds an answer of the model. Without calls it is the last one. cut: it reached its limit of tokens."""
        self.num_steps += 1
        self.num_tokens += num_tokens
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = [call.json() for call in calls]
        self.messages.append(message)
        if not calls:
            self.ending = "length" if cut else "answer"

    def add_result(self, call: AgentCall, text: str) -> None:
        """Adds the result of a call."""
        self.messages.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": text})

    def check_limits(self, *, cancelled: bool = False) -> bool:
        """Whether the model may answer again; sets `ending` if not."""
        if self.ending is None:
            if cancelled:
                self.ending = "cancelled"
            elif self.num_steps >= self.limits.steps:
                self.ending = "steps"
            elif self.remaining_tokens <= 0:
                self.ending = "tokens"
            elif time.monotonic() >= self.deadline:
                self.ending = "seconds"
        return self.ending is None

    def transcript(self) -> list[dict[str, Any]]:
        """What the run added to the conversation."""
        return self.messages[self.num_given :]

    def row(self) -> dict[str, Any]:
        """A row that `synthe train` reads with the objective sft: all messages, and the tools."""
        return {"messages": self.messages, "tools": self.tools}
