"""lm-evaluation-harness asking the server, and `synthe eval lm` on the checkpoint: every answer is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_eval.evaluator import evaluate

from synthe_core.evaluation.harness_model import Synthe
from synthe_core.evaluation.harness_tasks import Loader
from synthe_core.evaluation.suites import Entry
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.evaluation.models import choices, rolling, saved, written
from tests.paths import SHARED
from tests.training.conftest import _own_folders, cache  # noqa: F401  (fixtures)

DATA = SHARED / "data"
REAL = {"copa_local": 8, "lambada_local": 6, "wikitext_local": 1}


def compared(checkpoint: Path, tasks: dict[str, int], include: list[Path]) -> None:
    """Asks both on the same questions, and holds every single answer of theirs to ours."""
    pytest.importorskip("tenacity")  # which the harness asks servers with
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    ours = Synthe(checkpoint, device="cpu", max_length=2047)
    with AsyncEngine([LoadedModel.load(checkpoint, "m")]) as engine, Server(engine, Settings()) as server:
        url = f"{server.url}/v1/completions"
        theirs = LocalCompletionsAPI(model="m", base_url=url, tokenizer_backend="auto", batch_size=3, max_retries=1)
        assert theirs.tokenizer_backend == "remote"
        loader = Loader([Entry(task=name) for name in tasks], include, {})
        for wanted in loader.tasks:
            results = []
            for model in (theirs, ours):
                loaded = loader.load(wanted, ours.text, None)
                results.append(
                    evaluate(lm=model, task_dict=loaded, limit=tasks[wanted.name], bootstrap_iters=0, log_samples=True)
                )
            answers = [each["samples"][wanted.name] for each in results]
            assert len(answers[0]) == len(answers[1]) > 0
            for one, other in zip(*answers, strict=True):
                for (a,), (b,) in zip(one["resps"], other["resps"], strict=True):
                    if isinstance(a, str):
                        assert a == b
                    else:
                        (a, greedy), (b, ours_greedy) = ((x, True) if isinstance(x, float) else x for x in (a, b))
                        assert a == pytest.approx(b, abs=1e-3, rel=1e-5)
                        assert greedy == ours_greedy
            for key, value in results[0]["results"][wanted.name].items():
                expected = results[1]["results"][wanted.name][key]
                assert value == (pytest.approx(expected, rel=1e-4) if isinstance(expected, float) else expected)


@pytest.mark.slow
def test_the_harness_gets_the_same_numbers(tmp_path: Path) -> None:
    kinds = (choices, rolling, written)
    paths = [kind(tmp_path / "tasks") for kind in kinds]
    compared(saved(tmp_path / "model"), {path.stem: 3 for path in paths}, [tmp_path / "tasks"])


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data here")
def test_the_harness_gets_the_same_numbers_on_real_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthe_core.data.tokenizers import load_tokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(DATA)
    path = saved(tmp_path / "model", tokenizer=load_tokenizer(DATA / "tokenizers" / "gpt2"))
    compared(path, REAL, [DATA / "lm_eval_tasks"])
