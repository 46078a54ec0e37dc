"""A tiny model of random weights behind a real server, and ways to ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.app import App
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.evaluation.models import saved

CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LIMITS = Settings(max_prompt=400, max_tokens=600, max_n=4, max_choices=12, max_body=100_000, body_timeout=1.0)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `plain` and `chatty`, which has a chat template."""
    folder = tmp_path_factory.mktemp("served")
    saved(folder / "plain")
    saved(folder / "chatty", [{"type": "kalman"}, {"type": "mlp", "hidden": 32}])
    return folder


@pytest.fixture(scope="session")
def engine(checkpoints: Path) -> Iterator[AsyncEngine]:
    models = [LoadedModel.load(checkpoints / name) for name in ("plain", "chatty")]
    models[1].tokenizer.chat_template = CHATML
    with AsyncEngine(models, max_num_seqs=16) as engine:
        yield engine


@pytest.fixture(scope="session")
def server(engine: AsyncEngine) -> Iterator[Server]:
    with Server(engine, LIMITS) as server:
        yield server


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    """OpenAI's own client."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture
def ask(engine: AsyncEngine) -> Callable[..., TestClient]:
    """A client of an application with these settings over the same engine, without a network."""

    def make(engine: Any = engine, base_url: str = "http://127.0.0.1", **settings: Any) -> TestClient:
        return TestClient(App(engine, Settings(**settings)), base_url=base_url)

    return make
