"""Published models in every evaluation: by our learners, and as transformers runs them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.evaluation import confidence, perplexity
from synthe_core.evaluation.harness_model import Synthe
from synthe_core.evaluation.lm import EvalConfig
from synthe_core.evaluation.lm import evaluate as evaluate_tasks
from synthe_core.evaluation.opened_model import open_model
from synthe_core.events import Result
from tests.evaluation.models import choices, written
from tests.training.conftest import _own_folders, cache  # noqa: F401  (fixtures)

transformers = pytest.importorskip("transformers")
from tests.interop.huggingface.served_models import folder as made  # noqa: E402
from tests.interop.huggingface.served_models import gpt2  # noqa: E402

BITNET = {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64}


@pytest.fixture(scope="module", params=["gpt2", "bitnet"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first runs by our learners, the second by transformers."""
    path = tmp_path_factory.mktemp("models") / request.param
    path = gpt2(path) if request.param == "gpt2" else made(path, "BitNet", **BITNET)
    (path / "tokenizer_config.json").write_text('{"eos_token": "<|stop|>"}')
    return path


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("times is times is the sea " * 40)
    return path


def test_what_results_record(folder: Path) -> None:
    opened = open_model(folder, "cpu")
    assert (opened.name, opened.trained, opened.limit) == (folder.name, 64, 64)
    assert opened.grows and opened.data is None


def test_perplexity_is_that_of_transformers(folder: Path, book: Path) -> None:
    events = perplexity.evaluate(folder, sources=[str(book)], contexts=[16], tokens=64, device="cpu")
    *_, last = events
    assert isinstance(last, Result)
    measured = last.values["contexts"][0]  # type: ignore[index]
    ids = open_model(folder, "cpu").tokenizer.encode(book.read_text())
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    count, windows = (len(ids) - 1) // 16, 4
    starts = [n * count // windows * 16 for n in range(windows)]
    text = torch.tensor([ids[start : start + 17] for start in starts])
    with torch.no_grad():
        logits = peer(text[:, :-1]).logits
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    assert measured["perplexity"] == pytest.approx(math.exp(float(nats)), rel=1e-4)


def test_confidence_reads_the_text(folder: Path, book: Path) -> None:
    *_, last = confidence.evaluate(folder, sources=[str(book)], tokens=128, device="cpu")
    assert isinstance(last, Result) and last.values["tokens"] == 128


def test_tasks_are_answered(folder: Path, tmp_path: Path) -> None:
    config = EvalConfig(tasks=[str(choices(tmp_path)), str(written(tmp_path))], device="cpu")
    *_, last = evaluate_tasks([folder], config)
    assert isinstance(last, Result)
    (results,) = last.values["models"]  # type: ignore[misc]
    assert set(results["results"]) == {"rivers", "writing"}


def test_scores_are_those_of_transformers(folder: Path) -> None:
    model = Synthe(folder, device="cpu", prefix="none")
    context, rest = model.text.encode("times is"), model.text.encode(" the sea")
    (scored,) = model._loglikelihood_tokens([(("", ""), context, rest)])
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logprobs = peer(torch.tensor([context + rest])).logits[0].log_softmax(-1)
    expected = sum(float(logprobs[len(context) - 1 + n, token]) for n, token in enumerate(rest))
    assert scored[0] == pytest.approx(expected, abs=1e-4)


def test_without_text_one_line_asks_for_some(folder: Path) -> None:
    with pytest.raises(InputError, match="no recipe"):
        list(perplexity.evaluate(folder, device="cpu"))
