"""An engine with scripted output, for events that a real one produces rarely or at random times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.inference.generation_defaults import GenerationDefaults
from synthe_core.inference.outputs import Finished, Logprob, Output, PrefillFinished, PromptLogprob, TokenOutput
from synthe_core.inference.request import NotFound, Request


class Scripted:
    """Every request gets the events of `script(request)`, from another thread; after the last, `hold` keeps it open
    until it is cancelled."""

    def __init__(self, script: Callable[[Request], Sequence[Output]], hold: bool = False) -> None:
        self.script, self.hold = script, hold
        model = SimpleNamespace(vocab=257, parameter_count=lambda: 1)
        self.models = {
            "m": SimpleNamespace(
                name="m",
                tokenizer=ByteTokenizer(),
                model=model,
                digest="d" * 64,
                adapters={},
                created=0,
                state_bytes=lambda length: 8,
                max_length=None,
                defaults=GenerationDefaults(),
                parameter_count=lambda adapter=None: 1,
                weights="float32",
                speculation=None,
                memory_summary="",
                measured_speed="",
            )
        }
        self.sessions = SimpleNamespace(get=self._no_session, list=lambda owner: [])
        self.registry = SimpleNamespace(names=lambda owner: list(self.models))
        self.requests: list[Request] = []
        self.cancelled = threading.Semaphore(0)
        self.closed: list[float] = []

    def _no_session(self, name: str, owner: str) -> None:
        raise NotFound(f"no such session: {name}")

    def find(self, name: str, owner: str) -> tuple[Any, None]:
        if name not in self.models:
            raise NotFound(f"no such model: {name}")
        return self.models[name], None

    def submit(self, request: Request, deliver: Callable[[Output], None]) -> Any:
        self.requests.append(request)
        events = self.script(request)
        threading.Thread(target=lambda: [deliver(event) for event in events]).start()
        return SimpleNamespace(request=request, cancel=self.cancelled.release)

    def status(self, owner: str = "") -> dict[str, Any]:
        return {"live": 0, "waiting": 0, "max_batch": 1, "cache": {"hits": 2}, "state_bytes_per_sequence": {"m": 8}}

    def close(self, deadline: float) -> None:
        self.closed.append(deadline)


def written(text: bytes, releases: Sequence[str], logprob: float = -1.0) -> list[TokenOutput]:
    """A token for each byte of `text`, each with the text that is sure by then."""
    return [
        TokenOutput(byte, release, Logprob(byte, logprob), (Logprob(byte, logprob),), 0.5)
        for byte, release in zip(text, releases, strict=True)
    ]


def prompt_logprobs(text: bytes) -> list[PromptLogprob]:
    return [
        PromptLogprob(byte, Logprob(byte, -2.0) if i else None, (Logprob(65, -0.5),)) for i, byte in enumerate(text)
    ]


def answer(request: Request, text: str = "abc", reason: Any = "length") -> list[Output]:
    """A plain answer."""
    events: list[Output] = [
        PrefillFinished(len(request.prompt_token_ids), 0),
        *(prompt_logprobs(bytes(request.prompt_token_ids)) if request.prompt_logprobs else ()),
    ]
    events += written(text.encode(), list(text))
    return [*events, Finished(reason, "", len(request.prompt_token_ids), 0, len(text))]
