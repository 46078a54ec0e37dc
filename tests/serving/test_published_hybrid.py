"""A published hybrid, a small Qwen3.5, served to 32 clients at once: answers in company are those alone, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.interop.huggingface.models import add_tokenizer, published

CLIENTS = 32
SHARED = "the sea is times is the sea " * 6  # a prefix of every other prompt, longer than what is cached at once
SIZES: dict[str, Any] = {
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "tie_word_embeddings": True, "max_position_embeddings": 512,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 24}


@pytest.fixture(scope="module", params=["Qwen3_5", "Qwen3_5Moe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tmp_path_factory.mktemp("published") / "hybrid"
    vocab = add_tokenizer(path).get_vocab_size()
    published(path, request.param, vocab_size=vocab, **SIZES, **(MOE if request.param == "Qwen3_5Moe" else {}))
    return LoadedModel.load(path)


@pytest.fixture
def served(model: LoadedModel) -> Iterator[Server]:
    """With a prefix cache and room for all clients."""
    engine = AsyncEngine([model], max_num_seqs=64, max_state_bytes=1 << 28, cache_bytes=1 << 24)
    with engine, Server(engine, Settings(max_n=4, max_choices=8)) as server:
        yield server


def requests(count: int) -> list[dict[str, Any]]:
    """Greedy and sampled, with and without the shared prefix, some with several answers forked from one prompt."""
    return [
        {
            "model": "hybrid",
            "prompt": (SHARED if client % 2 else "") + f"the {client} sea" * (1 + client % 5),
            "max_tokens": 6 + client % 7,
            "temperature": 0 if client % 3 else 0.9,
            "n": 3 if client % 4 == 1 else 1,
            "seed": client,
            "logprobs": 2,
        }
        for client in range(count)
    ]


def answer(url: str, body: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Text and log-probabilities of every choice."""
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return [(choice["text"], choice["logprobs"]["token_logprobs"]) for choice in response.json()["choices"]]


def test_answers_are_equal_alone_and_in_company(model: LoadedModel, served: Server) -> None:
    bodies = requests(CLIENTS)
    with ThreadPoolExecutor(CLIENTS) as clients:
        together = list(clients.map(lambda body: answer(served.url, body), bodies))
    again = [answer(served.url, body) for body in bodies[:8]]  # alone, and from what is cached by now
    with AsyncEngine([model], cache_bytes=0) as engine, Server(engine, Settings(max_n=4, max_choices=8)) as server:
        alone = [answer(server.url, body) for body in bodies]
    assert together == alone and again == alone[:8]
    assert len({text for choices in together for text, _ in choices}) > CLIENTS
    forked = next(
        choices for body, choices in zip(bodies, together, strict=True) if body["n"] > 1 and body["temperature"]
    )
    assert len({text for text, _ in forked}) == 3


def test_a_shared_prefix_is_read_once(model: LoadedModel, served: Server) -> None:
    bodies = [body for body in requests(CLIENTS) if body["prompt"].startswith(SHARED)]
    for body in bodies[:4]:
        answer(served.url, body)
    usage = httpx.post(f"{served.url}/v1/completions", json=bodies[5], timeout=120).json()["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert 0.5 * usage["prompt_tokens"] < cached < usage["prompt_tokens"]
