"""A model that answers conversations: one in this process, or one behind an OpenAI-compatible server."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synthe_core.data import chat_template
from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.outputs import whole_text
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.load import load_model
from synthe_core.swarm.remote.addresses import Address
from synthe_core.swarm.remote.chat import RemoteChat, RemoteModel
from synthe_core.swarm.spec import RemoteSpec

Message = Mapping[str, str]
KEYS = ("SYNTHE_API_KEY", "OPENAI_API_KEY")
"""Environment variables in which the key of a server is looked for."""


class ChatModel(ABC):
    """name: for tables and files. identity: what its answers depend on."""

    name: str
    identity: str

    @abstractmethod
    def reply(self, messages: Sequence[Message], max_tokens: int, schema: Mapping[str, Any] | None = None) -> str:
        """The greedy answer to a conversation, of JSON with `schema`. WorkError if the model gives none."""


@contextmanager
def open_chat_model(name: str, path: Path | None, device: str = "cpu", weights: str = "auto") -> Iterator[ChatModel]:
    """The model at `path`, or of the server at the URL `name`, such as http://127.0.0.1:6900/v1#model.

    InputError for a URL that names no model.
    """
    if path is None:
        yield RemoteChatModel(name)
        return
    model = load_model(path, device=device, weights=weights)
    with AsyncEngine([model]) as engine:
        yield LocalChatModel(engine, model.name)


class LocalChatModel(ChatModel):
    """A model of a running engine, with a plain chat template where it has none of its own.

    A later turn reads only what is new: the engine's prefix cache has the rest.
    """

    def __init__(self, engine: AsyncEngine, name: str) -> None:
        self._engine, self.name = engine, name
        self._model = engine.registry.resolve(name).model
        self._tokenizer = chat_template.with_template(self._model.tokenizer)
        self.identity = f"{self._model.digest}:{self._model.weights}"

    def reply(self, messages: Sequence[Message], max_tokens: int, schema: Mapping[str, Any] | None = None) -> str:
        text = chat_template.render(self._tokenizer, [dict(each) for each in messages])
        tokens = tuple(self._tokenizer.encode_marked(text))
        request = Request(
            self.name,
            tokens,
            self._model.fitting(max_tokens, len(tokens)),
            SamplingParams(temperature=0.0),
            json_schema=schema,
            return_logprob=False,
        )
        return whole_text(self._engine.submit(request), self.name)


class RemoteChatModel(ChatModel):
    """A model of another server; with a schema the caller must be ready for other text."""

    def __init__(self, url: str) -> None:
        address, _, model = url.partition("#")
        if not model:
            raise InputError(f"{url} names no model", "put it after a #: http://127.0.0.1:6900/v1#my-model")
        parsed = Address.parse(address)
        key = next((os.environ[name].strip() for name in KEYS if os.environ.get(name, "").strip()), None)
        if key is not None and parsed.scheme == "http" and not parsed.is_private:
            raise InputError(f"the API key would go unencrypted to {parsed.host}", "use https, or unset the key")
        self._model = RemoteModel(parsed, model, key)
        self.name, self.identity = model, url

    def reply(self, messages: Sequence[Message], max_tokens: int, schema: Mapping[str, Any] | None = None) -> str:
        return "".join(RemoteChat(self._model, messages, max_tokens, 0.0, RemoteSpec()))
