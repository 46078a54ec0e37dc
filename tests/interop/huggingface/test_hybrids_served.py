"""Published hybrids as they are served by our learners: answers alone and in company, prefix cache, sessions, state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core import state as states
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.outputs import TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.load import load_model
from synthe_core.introspection.report import introspect
from synthe_core.model.language_model import LanguageModel
from tests.interop.huggingface.models import add_tokenizer, published
from tests.interop.huggingface.test_families_hybrids import CASES

SERVED = ["falcon mamba", "falcon h1", "granite 4, experts", "jamba", "nemotron h, experts"]


@pytest.fixture(scope="module", params=SERVED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / request.param.replace(",", "").replace(" ", "-")
    kind, options = CASES[request.param]
    published(path, kind, **options | {"vocab_size": add_tokenizer(path).get_vocab_size()})
    return path


@pytest.fixture(scope="module")
def served(folder: Path) -> Any:
    loaded = load_model(folder)
    assert isinstance(loaded.model, LanguageModel)
    return loaded


def prompts(served: Any, *lengths: int) -> list[tuple[int, ...]]:
    drawn = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(served.vocab, (n,), generator=drawn).tolist()) for n in lengths]


def ask(served: Any, prompt: tuple[int, ...], **options: Any) -> Request:
    warm = SamplingParams(temperature=0.8, top_p=0.95)
    settings = {"max_tokens": 9, "sampling": warm, "seed": len(prompt), "ignore_eos": True, "logprobs": 2}
    return Request(model=served.name, prompt_token_ids=prompt, **settings | options)


def outputs(engine: AsyncEngine, *requests: Request) -> list[list[TokenOutput]]:
    """What is written to requests that are all there at once."""
    handles = [engine.submit(request) for request in requests]
    return [[each for each in handle if isinstance(each, TokenOutput)] for handle in handles]


def numbers(written: list[TokenOutput]) -> list[Any]:
    return [(each.token_id, each.logprob, each.top_logprobs) for each in written]


def test_an_answer_is_the_same_alone_and_in_company_to_the_bit(served: Any) -> None:
    requests = [ask(served, prompt) for prompt in prompts(served, 5, 70, 1, 33, 300, 12)]
    with AsyncEngine([served], cache_bytes=0) as engine:
        together = outputs(engine, *requests)
        alone = [outputs(engine, request)[0] for request in requests]
    assert [numbers(each) for each in together] == [numbers(each) for each in alone]


def test_a_cached_prefix_and_a_session_go_on_as_if_all_were_read_again(served: Any, tmp_path: Path) -> None:
    (prompt,) = prompts(served, 300)
    longer, greedy = (*prompt, 7, 8), {"sampling": SamplingParams(temperature=0)}
    with AsyncEngine([served], cache_bytes=0) as engine:
        (expected,) = outputs(engine, ask(served, longer, **greedy))
    with AsyncEngine([served], sessions=tmp_path) as engine:
        outputs(engine, ask(served, prompt, max_tokens=1))
        (again,) = outputs(engine, ask(served, longer, **greedy))
        assert engine.status()["cache"]["hits"] > 0
        outputs(engine, ask(served, prompt, max_tokens=0, session_id="talk"))
        (later,) = outputs(engine, ask(served, (7, 8), session_id="talk", **greedy))
    assert [each.token_id for each in again] == [each.token_id for each in expected]
    assert [each.token_id for each in later] == [each.token_id for each in expected]


def test_its_state_is_as_large_as_it_says_and_a_fork_leaves_no_mark(served: Any) -> None:
    text, end = (torch.tensor([tokens]) for tokens in prompts(served, 41, 6))
    with torch.no_grad():
        _, state = served.model.next_logits(text)
        assert states.nbytes(state) == served.model.state_bytes(41)
        first, _ = served.model.next_logits(end, state)
        served.model.next_logits(end[:, 2:], state)  # dropped
        again, after = served.model.next_logits(end, state)
    assert torch.equal(first, again)
    assert states.nbytes(after) == served.model.state_bytes(47)


def test_introspection_shows_its_gates_and_reconstructs_its_memory(folder: Path, served: Any) -> None:
    report = introspect(folder, "times is the sea")
    shown = {(series.learner, series.name) for series in report.series}
    mixer = next(spec.type for spec in served.model.spec.learners if spec.type.startswith("mamba"))
    assert {(mixer, "delta"), (mixer, "added")} <= shown
    if mixer == "mamba2":
        assert {(mixer, "decay"), (mixer, "written"), (mixer, "memory_norm")} <= shown
        assert report.reads and all(reads.error < 1e-5 for reads in report.reads)
