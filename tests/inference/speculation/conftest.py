"""Small models with drafts from a list, some of whose tokens are wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator
from collections.abc import Sequence as Many
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Finished, Output, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.speculation.proposer import DraftRequest, Speculation
from tests.inference.conftest import GREEDY, MEMORY, WHOLE, written

FUSED: list[Any] = [{"type": "attention", "heads": 2, "window": 24}, {"type": "mlp", "hidden": 32}]
BLOCKS = {"fused": FUSED, "memory": MEMORY, "whole": WHOLE}


class KnownTexts:
    """Drafts what is known to follow each prompt; every token is wrong with the probability `wrong`."""

    name, is_free = "known", True

    def __init__(self, texts: dict[tuple[int, ...], list[int]], wrong: float = 0.2, vocab: int = 257) -> None:
        self.texts, self.wrong, self.vocab = texts, wrong, vocab
        self.random = random.Random(0)
        self.forgotten: list[Hashable] = []

    def matched(self, request: DraftRequest) -> None:
        return None

    def propose(self, requests: Many[DraftRequest]) -> list[list[int]]:
        drafts = []
        for each in requests:
            known = self.texts[tuple(each.prompt)][len(each.output) :][: each.most]
            drafts.append([self.random.randrange(256) if self.random.random() < self.wrong else t for t in known])
        return drafts

    def forget(self, key: Hashable) -> None:
        self.forgotten.append(key)


def clock() -> Callable[[], float]:
    """A second later at every look."""
    ticks = count()
    return lambda: float(next(ticks))


@pytest.fixture(scope="session", params=list(BLOCKS))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    more: dict[str, Any] = {"depth": {"min": 1, "target": 0.5}} if request.param == "whole" else {"confidence": {}}
    return written(tmp_path_factory.mktemp("speculation") / request.param, BLOCKS[request.param], **more)


@pytest.fixture
def model(path: Path) -> LoadedModel:
    return LoadedModel.load(path, "model")


@pytest.fixture
def fused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    path = written(tmp_path_factory.mktemp("speculation") / "fused", FUSED, confidence={})
    yield LoadedModel.load(path, "model")


PROMPTS = [b"Once upon a time", b"a", b"The quick brown fox jumps over the lazy dog, again and again"]


def request_of(prompt: bytes | tuple[int, ...], max_tokens: int = 40, **more: Any) -> Request:
    values = {"sampling": GREEDY, "ignore_eos": True, **more}
    return Request("model", tuple(prompt), max_tokens, **values)


def run(
    model: LoadedModel, requests: Many[Request], engine: Engine | None = None, **options: Any
) -> list[list[Output]]:
    """The outputs of requests that start together."""
    engine = engine or Engine([model], max_state_bytes=1 << 30, cache_bytes=0)
    outputs: list[list[Output]] = [[] for _ in requests]

    def receiver(row: int) -> Callable[[Output], bool]:
        return lambda output: outputs[row].append(output) or False

    for row, request in enumerate(requests):
        engine.add_request(request, receiver(row), **options)
    while engine.has_unfinished:
        engine.step()
    return outputs


def tokens(outputs: Many[Output]) -> list[int]:
    ends = [each for each in outputs if isinstance(each, Finished)]
    assert len(ends) == 1 and not ends[0].message, ends
    return [each.token_id for each in outputs if isinstance(each, TokenOutput)]


def speculating(model: LoadedModel, texts: dict[tuple[int, ...], list[int]], wrong: float = 0.2) -> KnownTexts:
    proposer = KnownTexts(texts, wrong)
    model.speculation = Speculation(proposer, clock=clock(), always=True)
    return proposer
