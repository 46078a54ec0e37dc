"""What llama.cpp makes of our files: token ids, greedy texts and log-probabilities as ours.

It runs where Node.js is and LLAMA_CPP_NODE names a folder of node_modules with the npm package node-llama-cpp, whose
prebuilt llama.cpp computes on the CPU: `npm install --ignore-scripts node-llama-cpp@3.22.1`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.data.longest_match import escaped
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.interop.gguf import exporter
from synthe_core.interop.gguf.export_tokenizer import tokenizer_metadata
from synthe_core.interop.gguf.exporter import export_gguf, general
from synthe_core.storage.checkpoint import Checkpoint
from tests.data.conversations import TEXTS
from tests.data.test_longest_match import WORLD, world_vocabulary
from tests.evaluation.models import saved
from tests.interop.gguf import families, rwkv7, test_families, test_hybrid_families
from tests.interop.gguf.test_exporter import MODELS
from tests.interop.gguf.test_smollm2 import FILE, PROMPT
from tests.processes import run_program

NODE = shutil.which("node")
MODULES = Path(os.environ.get("LLAMA_CPP_NODE", "/nowhere"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        NODE is None or not (MODULES / "node-llama-cpp").is_dir(), reason="needs Node.js and LLAMA_CPP_NODE"
    ),
]
PROMPTS = [PROMPT, "The sea was calm, and the old", "def fibonacci(n):\n"]
SCORED = (
    "In 1969 men walked on the Moon for the first time, and the world watched on television. Water boils at 100 "
    "degrees Celsius at sea level; at higher altitudes the boiling point is lower because the air pressure is lower."
)
COUNT = 64


def llama_cpp(
    model: Path, texts: Sequence[str] = (), prompts: Any = (), scored: Any = (), count: int = COUNT
) -> dict[str, Any]:
    """The token ids of texts, greedy continuations of prompts, and the log-probability of each token that is scored."""
    request = {
        "model": str(model),
        "texts": texts,
        "special": True,
        "prompts": prompts,
        "scored": scored,
        "count": count,
    }
    script = Path(__file__).with_name("llama_cpp.mjs")
    done = run_program([NODE, script, MODULES], input=json.dumps(request), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def greedy(model: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """The likeliest tokens, and by how much the logit of each is above that of the next one."""
    tokens, gaps, state = [], [], None
    with torch.inference_mode():
        logits, state = model(torch.tensor([prompt]))
        while len(tokens) < COUNT:
            best = logits[0, -1].topk(2)
            tokens.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
            logits, state = model(torch.tensor([tokens[-1:]]), state)
    return tokens, gaps


def logprobs(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        every = model(torch.tensor([tokens]))[0][0, :-1].log_softmax(-1)
    return every.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


@pytest.mark.parametrize("case", MODELS)
def test_random_models_have_its_numbers(tmp_path: Path, case: str) -> None:
    _, block, options = MODELS[case]
    source = Checkpoint.open(saved(tmp_path / "ours", block, **options))
    *_, _ = export_gguf(source.path, out=tmp_path / "model.gguf", quantize="f32")
    count = 7 if case == "mistral" else 100  # it computes no windows
    tokens = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    answer = llama_cpp(tmp_path / "model.gguf", TEXTS, scored=[tokens])
    ours = logprobs(source.model().eval(), tokens)
    assert ours.std() > 0.1
    torch.testing.assert_close(torch.tensor(answer["logprobs"][0]), ours, rtol=0, atol=2e-2)  # its cache is float16
    assert answer["tokens"] == [source.tokenizer().encode(text) for text in TEXTS]


@pytest.mark.parametrize("case", sorted(test_families.CASES | test_hybrid_families.CASES))
def test_every_family_has_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Random models of transformers in files by llama.cpp's conventions, which we read, write again and compare."""
    monkeypatch.setitem(families.SIZES, "vocab_size", 320)
    monkeypatch.setitem(test_hybrid_families.DELTA, "linear_value_head_dim", 8)  # as keys, which it takes for granted
    words = tokenizer_metadata(ByteTokenizer(), 320, tmp_path)
    monkeypatch.setattr(exporter, "general", lambda *given: general(*given) | words)
    _, path = (test_families.CASES | test_hybrid_families.CASES)[case](tmp_path / "theirs.gguf")
    source = Checkpoint.open(path)
    list(export_gguf(path, out=tmp_path / "model.gguf", quantize="f32"))
    count = 7 if case == "phi3, window" else min(60, source.context or 60)  # it computes no windows there
    tokens = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    ours = logprobs(source.model().eval(), tokens)
    assert ours.std() > 0.1
    answer = llama_cpp(tmp_path / "model.gguf", scored=[tokens])
    torch.testing.assert_close(torch.tensor(answer["logprobs"][0]), ours, rtol=0, atol=2e-2)


@pytest.mark.skipif(not WORLD.is_file(), reason="needs the shared tokenizers")
def test_rwkv7_has_its_numbers_and_tokens(tmp_path: Path) -> None:
    vocabulary = world_vocabulary()
    tokens = ["<s>"] + ["[PAD]"] * max(vocabulary)
    for i, token in vocabulary.items():
        tokens[i] = escaped(token)
    kinds = [3, *[1] * max(vocabulary)]
    words = {"tokenizer_model": "rwkv", "token_list": tokens, "token_types": kinds, "eos_token_id": 0}
    given = rwkv7.tensors(width=128, head=64, layers=3, hidden=160, vocab=len(tokens))
    path = rwkv7.write(tmp_path / "model.gguf", given, 64, **words)
    source = Checkpoint.open(path)
    text = source.tokenizer().encode(SCORED)[:60]
    answer = llama_cpp(path, TEXTS, scored=[text])
    ours = logprobs(source.model().eval(), text)
    assert ours.std() > 0.1
    torch.testing.assert_close(torch.tensor(answer["logprobs"][0]), ours, rtol=0, atol=2e-2)
    assert answer["tokens"] == [source.tokenizer().encode_marked(text) for text in TEXTS]


@pytest.mark.skipif(not FILE.is_file(), reason="needs the shared models")
@pytest.mark.parametrize(
    ("quantize", "mean"), [("f16", 0.005), ("bf16", 0.03), ("q8_0", 0.15), ("q4_0", 0.15), ("q4_k_m", 0.15)]
)
def test_a_real_model_says_the_same(tmp_path: Path, quantize: str, mean: float) -> None:
    """llama.cpp rounds what it multiplies with quantised weights to 8 bits as well: texts part where two tokens are
    nearly as likely, and never with 16 bits."""
    path = tmp_path / "model.gguf"
    *_, _ = export_gguf(FILE, out=path, quantize=quantize)
    checkpoint = Checkpoint.open(path)
    model, tokenizer = checkpoint.model().eval(), checkpoint.tokenizer()
    prompts, scored = [tokenizer.encode_marked(text) for text in PROMPTS], tokenizer.encode(SCORED)
    answer = llama_cpp(path, TEXTS, prompts, [scored])
    assert answer["tokens"] == [tokenizer.encode_marked(text) for text in TEXTS]
    difference = (logprobs(model, scored) - torch.tensor(answer["logprobs"][0])).abs()
    assert difference.mean() < mean
    for prompt, theirs in zip(prompts, answer["greedy"], strict=True):
        ours, gaps = greedy(model, prompt)
        parted = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
        if parted is not None:
            assert quantize != "f16" and gaps[parted] < 0.5
