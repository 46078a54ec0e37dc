"""The settings of a server: access and limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from synthe_core.agents.run import AgentLimits
from synthe_core.agents.tool import Tool

Role = Literal["user", "reviewer", "admin"]
ROLES: tuple[Role, ...] = ("user", "reviewer", "admin")
"""Each may do what those before it may."""


def silent(line: str) -> None:
    """Discards a line of the log."""


@dataclass(frozen=True)
class Settings:
    """Limits are per request unless stated otherwise; times are in seconds.

    keys:     bearer tokens, one of which a request must send; without keys, none is required.
    reviewer_keys, admin_keys: keys with more rights. Reviewers see and review the pairs that users' corrections make;
              admins also start learning, roll adapters back, make specialists, and see the figures of all keys.
    keyless_role: the role of everybody where no key is required.
    shared:   whether the keys share sessions, cached states, adapters and figures; otherwise each has its own.
    hosts:    accepted names of the `Host` header, None for any. The check protects a server on loopback from web pages
              whose own name resolves to 127.0.0.1 (DNS rebinding).
    origins:  origins whose pages may send cross-origin requests (CORS); none by default.
    adapters: folders whose entries can be loaded as adapters, by name.
    max_body: bytes of a body; all bodies being received together are limited to 16 times as much.
    max_prompt, max_tokens: the maximum number of prompt tokens, and of output tokens of one choice; `max_tokens` is the
              default of a chat without a limit.
    max_n, max_choices: the maximum number of choices of a prompt, and of all prompts of a request.
    max_texts: the maximum number of texts of a request for embeddings.
    max_logprobs: the maximum number of log-probabilities of an answer: its tokens, times one more than `logprobs`.
    max_adapters: the maximum number of adapters that the requests of one key may have loaded.
    max_background: the maximum number of concurrent embeddings, reports and long tokenizations, over all requests.
    tools:    those that the server runs itself, for chats that have none of their own.
    agent:    the limits of such a chat.
    open_objects: whether objects of a JSON Schema may have other properties than those it names, if it does not say.
    log:      called with a line for every request; without `log_prompts` it never contains prompt text.
    """

    keys: tuple[str, ...] = ()
    reviewer_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    keyless_role: Role = "user"
    shared: bool = False
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    adapters: tuple[Path, ...] = ()
    max_body: int = 16 << 20
    max_prompt: int = 131_072
    max_tokens: int = 4096
    max_n: int = 16
    max_choices: int = 128
    max_texts: int = 2048
    max_logprobs: int = 1 << 18
    max_adapters: int = 16
    max_background: int = 8
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    send_timeout: float = 30.0
    tools: tuple[Tool, ...] = ()
    agent: AgentLimits = field(default_factory=AgentLimits)
    open_objects: bool = False
    log_prompts: bool = False
    log: Callable[[str], None] = silent
