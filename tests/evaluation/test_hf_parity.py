"""The harness's own `hf` class on the exported weights, and ours on the checkpoint: the same on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthe_core.data.tokenizers import load_tokenizer
from synthe_core.evaluation.harness_model import Synthe
from synthe_core.evaluation.harness_tasks import Loader
from synthe_core.evaluation.suites import Entry
from synthe_core.events import Result
from synthe_core.interop.huggingface.exporter import export_hf
from tests.evaluation.models import saved
from tests.paths import SHARED
from tests.training.conftest import _own_folders, cache  # noqa: F401  (fixtures)

DATA = SHARED / "data"
BLOCKS: dict[str, list[Any]] = {
    "transformer": [{"type": "attention", "heads": 4}, {"type": "mlp", "hidden": 64}],
    "mamba": ["mamba"],
}
LOCAL = {"copa_local": (8, 0), "lambada_local": (6, 0), "wikitext_local": (1, 0)}
STOCK = {"arc_easy": (6, 2), "boolq": (4, 0), "hellaswag": (4, 1)}
"""(questions, examples before each) of tasks over local files, and of the harness's own."""


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data here")
@pytest.mark.parametrize(
    ("tasks", "folder"),
    [(LOCAL, DATA), pytest.param(STOCK, DATA / "hub", marks=pytest.mark.slow)],
    ids=["local", "stock"],
)
@pytest.mark.parametrize("kind", BLOCKS)
def test_every_answer_is_the_same(
    tmp_path: Path, kind: str, tasks: dict[str, tuple[int, int]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("accelerate", "transformers"):
        pytest.importorskip(name)
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(folder)  # where the data is found
    tokenizer = load_tokenizer(DATA / "tokenizers" / "gpt2")
    path = saved(tmp_path / "model", BLOCKS[kind], tokenizer, sequence=256)
    *_, last = export_hf(path, out=tmp_path / "exported")
    assert isinstance(last, Result)
    theirs = HFLM(pretrained=str(last.path), device="cpu", dtype="float32", batch_size=4, max_length=256)
    ours = Synthe(path, device="cpu", max_length=256)
    loader = Loader([Entry(task=name) for name in tasks], [DATA / "lm_eval_tasks"], {})
    for task in loader.tasks:
        limit, shots = tasks[task.name]
        outputs = []
        for model in (theirs, ours):
            loaded = loader.load(task, ours.text, shots)
            outputs.append(evaluate(lm=model, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True))
        for one, other in zip(*(each["samples"][task.name] for each in outputs), strict=True):
            assert one["prompt_hash"] == other["prompt_hash"]
            for (a,), (b,) in zip(one["resps"], other["resps"], strict=True):
                (a, greedy), (b, ours_greedy) = ((x, True) if isinstance(x, float) else x for x in (a, b))
                assert b == pytest.approx(a, abs=1e-3, rel=1e-6) and ours_greedy == greedy
        assert outputs[1]["results"][task.name] == {
            key: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            for key, value in outputs[0]["results"][task.name].items()
        }
