"""Evaluation of recurrent models that transformers runs: shared contexts, ends of other lengths, written text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interop.huggingface.backend_families import family

pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")
from synthe_core.evaluation.harness_model import Synthe  # noqa: E402
from tests.evaluation.test_harness_model import instances  # noqa: E402
from tests.training.conftest import _own_folders, cache  # noqa: E402, F401  (fixtures)

CONTEXTS = ("the sea", "the sea times", "is")
ENDS = (" is", " times the", "t")


@torch.inference_mode()
def loglikelihood(peer: Any, context: list[int], rest: list[int]) -> float:
    """log p(rest | context) of transformers without a cache."""
    logits = peer(torch.tensor([[*context, *rest]]), use_cache=False).logits[0, len(context) - 1 : -1].float()
    return float(logits.log_softmax(-1).gather(1, torch.tensor(rest)[:, None]).sum())


@pytest.mark.parametrize("kind", ["Zamba2", "Jamba", "Rwkv"])
def test_loglikelihoods_and_texts_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    path = family(tmp_path / "m", kind)
    model = Synthe(path, device="cpu")
    peer = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    peer.config.rescale_every = 0  # of RWKV
    pairs = [(context, end) for context in CONTEXTS for end in ENDS]
    for (context, end), (score, _) in zip(pairs, model.loglikelihood(instances("loglikelihood", *pairs)), strict=True):
        before = model.tok_encode(context)
        rest = model.tok_encode(context + end)[len(before) :]
        assert score == pytest.approx(loglikelihood(peer, before, rest), abs=2e-3)
    assert model.limit == (None if kind == "Rwkv" else 64)
    requests = [(context, {"until": [], "max_gen_toks": 5}) for context in CONTEXTS]
    for text, (context, _) in zip(model.generate_until(instances("generate_until", *requests)), requests, strict=True):
        tokens = model.tok_encode(context)
        for _ in range(5):
            with torch.inference_mode():
                tokens.append(int(peer(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        pieces = [model.opened.tokenizer.pieces[token] for token in tokens[len(model.tok_encode(context)) :]]
        expected = b"".join(pieces).decode(errors="replace")
        assert text == expected
