"""What a server allows: who may ask, and how much of what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def silent(line: str) -> None:
    """Nobody reads it."""


@dataclass(frozen=True)
class Settings:
    """Limits are per request unless they say otherwise; times are in seconds.

    keys:     bearer tokens of which a request must bring one; none are asked for where there are none.
    hosts:    the names in a `Host` header that are answered, None for any. It is what stands between a server on
              loopback and a web page that has its own name resolve to 127.0.0.1.
    origins:  web pages of elsewhere that may ask (CORS), none by default.
    adapters: the folders whose entries may be loaded as adapters, by name.
    max_body: bytes; all bodies that are arriving at a time take no more than 16 times as much.
    max_prompt, max_tokens: the most tokens to read and to write for one answer; `max_tokens` is what a chat gets which
              does not say how many it wants.
    max_n, max_choices: the most answers to a prompt, and to all prompts of a request.
    max_aside: embeddings, reports and long tokenisations that run at a time, over all requests.
    log:      told a line for every request; of what was asked it holds nothing unless `log_prompts`.
    """

    keys: tuple[str, ...] = ()
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    adapters: tuple[Path, ...] = ()
    max_body: int = 16 << 20
    max_prompt: int = 131_072
    max_tokens: int = 4096
    max_n: int = 16
    max_choices: int = 128
    max_aside: int = 8
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    send_timeout: float = 30.0
    log_prompts: bool = False
    log: Callable[[str], None] = silent
