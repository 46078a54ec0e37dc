"""Dense Transformers in the engine: our learners' answers are transformers', alone and beside longer texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.load import load_model
from synthe_core.model.language_model import LanguageModel
from tests.interop.huggingface.served_models import answers, folder, gpt2, prompts

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", ["Gemma2", "Gemma", "GPTNeoX", "Cohere", "GPT2"])
def test_answers_are_those_of_transformers_in_any_company(tmp_path: Path, kind: str) -> None:
    path = gpt2(tmp_path / kind) if kind == "GPT2" else folder(tmp_path / kind, kind)
    served = load_model(path, kind)
    assert isinstance(served.model, LanguageModel) and served.batch_invariant
    peer = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    texts = prompts(served, 3, 17, 9, 30)
    requests = [Request(kind, tuple(text), 20, SamplingParams(temperature=0), ignore_eos=True) for text in texts]
    with AsyncEngine([served], cache_bytes=0) as engine:
        together = [tokens for tokens, _ in answers(engine, requests)]
        alone = [answers(engine, [request])[0][0] for request in requests]
    assert together == alone
    for text, tokens in zip(texts, together, strict=True):
        with torch.inference_mode():
            logits = peer(torch.tensor([text + tokens])).logits[0, len(text) - 1 : -1]
        best, chosen = logits.max(-1).values, logits[torch.arange(20), torch.tensor(tokens)]
        assert (best - chosen).max() < 1e-3
