"""lm-evaluation-harness's own `hf` class answers every kind of request for our checkpoints as `--model synthe` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from tokenizers import decoders

from synthe_core.data.tokenizers import load_tokenizer
from synthe_core.evaluation.harness_model import Synthe
from tests.evaluation.models import ATTENTION, saved
from tests.interop.huggingface.auto_classes.models import EVERYTHING
from tests.interop.huggingface.models import add_tokenizer
from tests.training.conftest import _own_folders, cache  # noqa: F401  (fixtures)

TEXT = "the river runs to the sea and comes again as rain "
LIMIT = 64


def instances(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, each, n) for n, each in enumerate(arguments)]  # type: ignore[arg-type]


@pytest.mark.parametrize("tokenizer", ["bytes", "with a begin"])
@pytest.mark.parametrize("block", [ATTENTION, EVERYTHING], ids=["attention", "everything"])
def test_every_kind_of_request(tmp_path: Path, block: list[Any], tokenizer: str) -> None:
    from lm_eval.models.huggingface import HFLM

    chosen = None
    if tokenizer != "bytes":
        inner = add_tokenizer(tmp_path)
        inner.decoder = decoders.ByteLevel()
        inner.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "<|stop|>"}')
        chosen = load_tokenizer(tmp_path)
    path = saved(tmp_path / "model", block, chosen, sequence=LIMIT)
    theirs = HFLM(pretrained=str(path), device="cpu", batch_size=3, max_length=LIMIT)
    ours = Synthe(path, device="cpu", max_length=LIMIT)
    pairs = [("a river ", "sea"), ("", "sea"), (TEXT, " and so on"), ("ünï", "cödé"), (TEXT * 3, " rain")]
    for (one, first), (other, second) in zip(
        theirs.loglikelihood(instances("loglikelihood", *pairs)),
        ours.loglikelihood(instances("loglikelihood", *pairs)),
        strict=True,
    ):
        assert one == pytest.approx(other, abs=1e-3) and first == second
    texts = [(TEXT,), (TEXT * 5,)]
    if chosen is not None:  # else the harness's class scores the token that begins the text, after another of it
        theirs.add_bos_token = False
    one, other = (
        model.loglikelihood_rolling(instances("loglikelihood_rolling", *texts)) for model in (theirs, ours)
    )  # fmt: skip
    assert one == pytest.approx(other, abs=1e-2)
    settings: list[tuple[str, dict[str, Any]]] = [
        (TEXT, {"until": ["e"], "max_gen_toks": 12, "do_sample": False}),
        ("a", {"until": ["\n\n"], "max_gen_toks": 9, "do_sample": False}),
        ("the sea and", {"until": ["\n\n"], "max_gen_toks": 9, "do_sample": False}),
    ]
    theirs.add_bos_token = None
    written = [model.generate_until(instances("generate_until", *settings)) for model in (theirs, ours)]
    assert written[0] == written[1]
