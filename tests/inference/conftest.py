"""Small models with random weights, as they are served: a memory, a window, and everything at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.lora_linear import linear_maps, matrix_shape
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.hardware.mkl import request_strict_mode
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Finished, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.inference.scheduler_config import SchedulerConfig, offline
from synthe_core.model.language_model import LanguageModel, ModelState
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import save, weights
from synthe_core.storage.manifest import Manifest

request_strict_mode()

GREEDY = SamplingParams(temperature=0)
MEMORY: list[Any] = [{"type": "delta", "heads": 3, "key_size": 4}, {"type": "kalman"}, {"type": "mlp", "hidden": 32}]
WINDOW: list[Any] = [{"type": "attention", "heads": 2, "window": 24}, {"type": "mlp", "hidden": 32}]

WHOLE: list[Any] = [
    {"type": "kalman"},
    {
        "type": "multiscale_memory",
        "tiers": [{"every": 1, "size": 8, "rule": "momentum"}, {"every": 16, "size": 8, "rule": "kalman"}],
    },
    {"type": "mlp", "hidden": 32},
    {"type": "attention", "heads": 2, "window": 24, "when": {"signal": "confidence", "below": 0.5, "target": 0.25}},
]


def written(path: Path, block: list[Any], **more: Any) -> Path:
    """A checkpoint of a model that is not sure of the same token for ever."""
    recipe = Recipe.model_validate({"model": {"width": 24, "blocks": 2, "block": block, "tie": False, **more}})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = LanguageModel(recipe.model, 257)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 1.0 if name in ("head.weight", "embedding.weight") else 0.4)
            if model.router is not None:
                model.router.thresholds.zero_()
    tokenizer = ByteTokenizer()
    save(path, recipe=recipe, vocab=257, tensors=weights(model), manifest=Manifest(), tokenizer=tokenizer)
    return path


@pytest.fixture(scope="session")
def memory_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("serving") / "memory", MEMORY, confidence={})


@pytest.fixture(scope="session")
def memory(memory_path: Path) -> LoadedModel:
    return LoadedModel.load(memory_path)


@pytest.fixture(scope="session")
def window(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return LoadedModel.load(written(tmp_path_factory.mktemp("serving") / "window", WINDOW))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    depth = {"min": 1, "target": 0.5}
    return LoadedModel.load(written(tmp_path_factory.mktemp("serving") / "whole", WHOLE, depth=depth))


@pytest.fixture
def engine(memory: LoadedModel, window: LoadedModel, whole: LoadedModel) -> Iterator[AsyncEngine]:
    with AsyncEngine([memory, window, whole], max_state_bytes=1 << 28, cache_bytes=1 << 24) as engine:
        yield engine


@pytest.fixture
def ask() -> Callable[..., Request]:
    """A request to `memory`, greedy, that nothing but its count ends."""

    def build(prompt: bytes | tuple[int, ...] = b"Once upon", count: int = 12, **more: Any) -> Request:
        return Request(
            **{"model": "memory", "sampling": GREEDY, "ignore_eos": True, **more},
            prompt_token_ids=tuple(prompt),
            max_tokens=count,
        )

    return build


def output_ids(events: Any) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenOutput)]


def text(events: Any) -> str:
    return "".join(event.text for event in events if isinstance(event, (TokenOutput, Finished)))


def reference_tokens(model: LanguageModel, prompt: Any, count: int) -> list[int]:
    """What a plain greedy loop over `next_logits` generates."""
    with torch.no_grad():
        logits, state = model.next_logits(torch.tensor([list(prompt)]))
        tokens = [int(logits.argmax())]
        while len(tokens) < count:
            logits, state = model.next_logits(torch.tensor([tokens[-1:]]), state)
            tokens.append(int(logits.argmax()))
    return tokens


def offline_tokens(
    model: LanguageModel,
    prompts: Any,
    count: int,
    sampling: SamplingParams = GREEDY,
    seed: int = 0,
    config: SchedulerConfig | None = None,
) -> list[list[int]]:
    """What the offline engine generates after prompts of tokens, all of them at once; row i with `seed` + i."""
    loaded = LoadedModel("model", model, ByteTokenizer())
    engine = Engine([loaded], cache_bytes=0, max_state_bytes=1 << 30, config=config or offline("cpu"))
    sequences = [
        engine.add_request(
            Request("model", tuple(prompt), count, sampling, seed=seed + row, ignore_eos=True), lambda output: False
        )
        for row, prompt in enumerate(prompts)
    ]
    while engine.has_unfinished:
        engine.step()
    for sequence in sequences:
        assert sequence.error is None, sequence.error
    return [sequence.output_token_ids for sequence in sequences]


def adapter_of(model: LanguageModel, rank: int, scaling: float) -> Adapter:
    generator = torch.Generator().manual_seed(rank)
    maps = {}
    for name, each in linear_maps(model).items():
        rows, columns = matrix_shape(each)
        a, b = (torch.randn(shape, generator=generator) * 0.3 for shape in ((rank, columns), (rows, rank)))
        maps[name] = LowRank(a, b, scaling)
    return Adapter(maps)


def started(model: LanguageModel, lengths: tuple[int, ...] = (5, 12, 1)) -> ModelState:
    """The state of rows of several lengths."""
    tokens = torch.randint(50, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    return model.hidden(tokens, None, torch.tensor(lengths))[1]


def tokens_of(step: int, rows: int) -> torch.Tensor:
    return torch.randint(50, (rows, 1), generator=torch.Generator().manual_seed(step))
