"""A prompt gives the same numbers from a cached prefix as from its beginning, for learners that may be cut at different
places, or nowhere but between chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import TokenOutput
from synthe_core.inference.request import Request
from tests.inference.conftest import GREEDY, written

MODELS: dict[str, tuple[int, list[dict[str, Any]]]] = {
    "attention": (16, [{"type": "attention", "heads": 2}, {"type": "mlp", "hidden": 40}]),
    "capped": (16, [{"type": "attention", "heads": 2, "kv_heads": 1, "window": 200, "logit_cap": 2.0}]),
    "mlstm": (16, [{"type": "mlstm", "heads": 2}]),
    "probe": (
        16,
        [{"type": "kalman"}, {"type": "attention", "heads": 2, "when": {"signal": "surprise", "above": 0.9}}],
    ),
    "test_time": (48, [{"type": "test_time", "span": 24}]),
    "fast_weights": (256, [{"type": "fast_weights", "heads": 2}, {"type": "attention", "heads": 2}]),
    "multiscale": (256, [{"type": "multiscale_memory"}]),
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> LoadedModel:
    loaded = LoadedModel.load(written(tmp_path_factory.mktemp("cuts") / request.param, MODELS[request.param][1]))
    assert loaded.alignment(256) == MODELS[request.param][0]
    return loaded


def answer(engine: AsyncEngine, model: LoadedModel, prompt: list[int]) -> tuple[int, list[tuple[int, float]]]:
    """How many tokens of a prompt were cached, and the answer's tokens with their log-probabilities."""
    request = Request(model.name, tuple(prompt), 12, GREEDY, ignore_eos=True, logprobs=0)
    events = list(engine.submit(request))
    return events[0].num_cached_tokens, [(e.token_id, e.logprob.logprob) for e in events if isinstance(e, TokenOutput)]


def test_a_cached_prefix_changes_no_bit(model: LoadedModel) -> None:
    if not model.batch_invariant:
        pytest.skip("products depend on the rows beside them on this processor")
    drawn = torch.Generator().manual_seed(5)
    texts = [torch.randint(0, 256, (length,), generator=drawn).tolist() for length in (340, 90, 200)]
    prompts = [texts[0], texts[0] + texts[1], texts[0][:300] + texts[2], (texts[0] + texts[1])[:420] + texts[2]]
    cached = []
    with AsyncEngine([model], max_state_bytes=1 << 28, cache_bytes=1 << 24) as engine:
        for prompt in prompts:
            count, tokens = answer(engine, model, prompt)
            cached.append(count)
            with AsyncEngine([model], max_state_bytes=1 << 28, cache_bytes=0) as fresh:
                assert answer(fresh, model, prompt) == (0, tokens)
    assert cached[0] == 0 and all(cached[1:])


def test_company_changes_no_bit(model: LoadedModel) -> None:
    """Prompts that share a beginning are read together as far as it goes."""
    if not model.batch_invariant:
        pytest.skip("products depend on the rows beside them on this processor")
    shared = torch.randint(0, 256, (310,), generator=torch.Generator().manual_seed(6)).tolist()
    prompts = [[*shared, *range(number, number + 7 * number)] for number in range(1, 7)]
    with AsyncEngine([model], max_state_bytes=1 << 28, cache_bytes=1 << 24) as engine:
        tickets = [
            engine.submit(Request(model.name, tuple(each), 9, GREEDY, ignore_eos=True, logprobs=0)) for each in prompts
        ]
        together = [
            [(event.token_id, event.logprob.logprob) for event in ticket if isinstance(event, TokenOutput)]
            for ticket in tickets
        ]
    with AsyncEngine([model], max_state_bytes=1 << 28, cache_bytes=0) as fresh:
        for prompt, tokens in zip(prompts, together, strict=True):
            assert answer(fresh, model, prompt)[1][:9] == tokens
