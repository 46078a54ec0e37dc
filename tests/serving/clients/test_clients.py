"""Clients of others against a real server, each in an environment of its own that pip makes from an index."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.evaluation.models import saved
from tests.processes import run_program
from tests.serving.api.conftest import CHATML

HERE = Path(__file__).parent
CLIENTS = {
    "openai": ["openai==3.57.0"],
    "openai_agents": ["openai-agents==0.24.0"],
    "litellm": ["litellm==1.110.2"],
    "langchain": ["langchain-openai==1.7.4"],
    "llama_index": ["llama-index-llms-openai-like==0.8.1", "llama-index-embeddings-openai-like==0.4.0"],
    "instructor": ["instructor==1.17.0"],
    "pydantic_ai": ["pydantic-ai-slim[openai]==2.68.0"],
    "llm": ["llm==0.36"],
    "guidellm": ["guidellm==0.8.1"],
    "vllm_bench": ["aiohttp==3.13.2"],
}
INSTALL_LIMIT, RUN_LIMIT = 900.0, 300.0  # seconds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = LoadedModel.load(saved(tmp_path_factory.mktemp("clients") / "chatty"))
    model.tokenizer.chat_template = CHATML
    limits = Settings(max_prompt=32_768, max_tokens=512)
    with AsyncEngine([model], max_num_seqs=16) as engine, Server(engine, limits) as server:
        yield server


def environment(folder: Path, packages: list[str]) -> Path:
    """The Python of a new environment with these packages. Skips the test if they cannot be installed."""
    run_program([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries", "1", *packages]
    try:
        installed = run_program(command, timeout=INSTALL_LIMIT, capture_output=True, text=True, env=outside())
    except subprocess.TimeoutExpired:
        pytest.skip("pip takes too long")
    if installed.returncode:
        pytest.skip(f"pip cannot install {' '.join(packages)}: {installed.stderr.strip()[-300:]}")
    return python


def outside(**more: str) -> dict[str, str]:
    """The variables of a program that sees nothing of this environment and asks nobody but the server."""
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OPENAI_API_KEY")}
    return own | {"PYTHONNOUSERSITE": "1", **more}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="environments have another layout")
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client(client: str, server: Server, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", CLIENTS[client])
    offline = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(tmp_path)}
    ran: Any = run_program(
        [python, HERE / f"ask_{client}.py", server.url],
        timeout=RUN_LIMIT,
        capture_output=True,
        text=True,
        env=outside(**offline),
        cwd=tmp_path,
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    assert ran.stdout.strip().endswith("ok")
