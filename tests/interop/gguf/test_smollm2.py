"""A real instruct model in a GGUF file: SmolLM2-135M-Instruct, through the verbs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from synthe_core.inference import offline
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.load import load_model
from synthe_core.storage.checkpoint import Checkpoint
from tests.paths import SHARED

FILE = SHARED / "models" / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="needs the shared models")
PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(FILE)


def test_what_comes_with_the_model(model: LoadedModel) -> None:
    tokenizer = model.tokenizer
    assert model.max_length == 8192 and model.model.parameter_count() == 134_515_008
    assert tokenizer.begin is None and tokenizer.spelling(tokenizer.end) == "<|im_end|>"
    assert {tokenizer.spelling(i) for i in model.end_token_ids} == {"<|im_end|>", "<|endoftext|>"}
    assert tokenizer.chat_template is not None and tokenizer.encode("Hello world") == [19556, 905]


def test_it_answers_a_question(model: LoadedModel) -> None:
    ids = model.tokenizer.encode_marked(PROMPT)
    state, tokens = None, []
    with torch.inference_mode(), model.activate():
        logits, state = model.model(torch.tensor([ids]))
        while len(tokens) < 12 and (token := int(logits[0, -1].argmax())) not in model.end_token_ids:
            tokens.append(token)
            logits, state = model.model(torch.tensor([[token]]), state)
    assert model.tokenizer.decode(tokens) == "The capital of France is Paris."


def test_the_decoder_gives_the_same(model: LoadedModel) -> None:
    greedy = SamplingParams(temperature=0)
    deltas = offline.generate(model, ["The capital of France is"], 6, sampling=greedy, seed=0)
    assert "".join(text for _, text in deltas).startswith(" Paris")


@pytest.mark.slow
def test_its_logits_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    peer = transformers.AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype=torch.float32)
    checkpoint = Checkpoint.open(Path(FILE))
    ids = torch.tensor([checkpoint.tokenizer().encode_marked(PROMPT)])
    with torch.no_grad():
        expected = peer.eval()(ids).logits
        torch.testing.assert_close(checkpoint.model().eval()(ids)[0], expected, rtol=0, atol=2e-4)
