"""What a caller asks a swarm for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synthe_core.swarm.generation import Cancellation
from synthe_core.swarm.prompting import Message


@dataclass(frozen=True)
class SwarmRequest:
    """A request to a swarm.

    messages:     {"role", "content"}, the user's last. specialist: who answers, `base` included; None: the router says.
    user:         whose facts are used and whose answer it is. conversation: the name of theirs.
    max_tokens, synthesis: None for what swarm.yaml says. sampling: parameters by name, where they are given.
    stream: whether its text is shown as it comes, so that an answer of another server is passed on before it is whole.
    client, owner: of the engine's requests. cancellation: ends the answer from another thread.
    """

    messages: Sequence[Message]
    specialist: str | None = None
    user: str = ""
    conversation: str = ""
    max_tokens: int | None = None
    synthesis: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    stream: bool = False
    client: str = ""
    owner: str = ""
    cancellation: Cancellation = field(default_factory=Cancellation)
