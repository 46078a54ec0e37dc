"""Tiny random models of transformers, as they are served and as transformers runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.outputs import Finished, TokenOutput
from synthe_core.inference.request import Request
from tests.interop.huggingface.models import add_tokenizer, published

transformers = pytest.importorskip("transformers")
from synthe_core.interop.huggingface import backend  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64},
    "Qwen2": {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64},
    "Qwen3": {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64, "head_dim": 24},
    "Mistral": {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64, "sliding_window": 7},
    "Gemma2": {  # caps its logits, scales its embedding, and every other layer sees a window only
        "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64, "head_dim": 16,
        "sliding_window": 7, "final_logit_softcapping": 3.0,
    },
    "Cohere": {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64, "logit_scale": 0.25},
    "GPTNeoX": {"intermediate_size": 96, "max_position_embeddings": 64},
    "Gemma": {  # GELU by tanh, and sizes that are no multiples of a processor's vectors
        "num_key_value_heads": 1, "intermediate_size": 97, "max_position_embeddings": 64, "head_dim": 10,
    },
}  # fmt: skip


def folder(path: Path, kind: str, **options: Any) -> Path:
    """A tiny random model of a kind, and a tokenizer."""
    inner = add_tokenizer(path)
    vocab = {"vocab_size": inner.get_vocab_size(), "num_attention_heads": 4, "num_hidden_layers": 2}
    published(path, kind, **{**vocab, **SIZES.get(kind, {}), **options})
    return path


def gpt2(path: Path) -> Path:
    inner = add_tokenizer(path)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=inner.get_vocab_size(), n_embd=64, n_layer=2, n_head=4, n_positions=64)
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module", name="pair", params=[*SIZES, "GPT2"])
def model_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model as it is served, and transformers' own."""
    path = tmp_path_factory.mktemp("models") / request.param
    path = gpt2(path) if request.param == "GPT2" else folder(path, request.param)
    return backend.load(path), transformers.AutoModelForCausalLM.from_pretrained(path).eval()


def prompts(served: Any, *lengths: int) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(3)
    return [torch.randint(served.model.vocab, (n,), generator=drawn).tolist() for n in lengths]


def answers(engine: AsyncEngine, requests: list[Request]) -> list[tuple[list[int], Finished]]:
    """What the engine writes to requests that are all there at once."""
    tickets = [engine.submit(request) for request in requests]
    outputs = [list(ticket) for ticket in tickets]
    return [([event.token_id for event in events if isinstance(event, TokenOutput)], events[-1]) for events in outputs]


def read_and_continue(model: Any, texts: list[list[int]], size: int, steps: int = 9) -> list[torch.Tensor]:
    """Logits [B, V] after each of `texts`, read in one pass of `size` tokens, and after each of `steps` more."""
    tokens = torch.zeros(len(texts), size, dtype=torch.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    logits, state = model.next_logits(tokens, lengths=torch.tensor([len(text) for text in texts]))
    results = [logits]
    for _ in range(steps):
        logits, state = model.next_logits(logits.argmax(-1, keepdim=True), state)
        results.append(logits)
    return results
