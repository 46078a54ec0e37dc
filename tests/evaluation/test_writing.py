"""Texts written in batches are those that each prompt gets alone."""

from __future__ import annotations

import pytest
import torch

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.evaluation.reading import Reader
from synthe_core.evaluation.writing import Prompt, write
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.offline import generate
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec

GREEDY = SamplingParams(temperature=0.0)
TEXT = ByteTokenizer()
HEAD = b"a heading that all of them begin with: "


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """One that writes letters, and no two alike."""
    torch.manual_seed(3)
    block = ["momentum", {"type": "attention", "heads": 2}, "mlp"]
    model = LanguageModel(ModelSpec(width=32, blocks=2, block=block), TEXT.vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.embedding.weight[:97] *= 0.1
        model.embedding.weight[123:] *= 0.1
    return model


def prompts() -> list[Prompt]:
    texts = [HEAD + b"one", HEAD + b"two and more", HEAD + b"one", b"x", b"another", HEAD[:20]]
    return [Prompt(list(text), seed) for seed, text in enumerate(texts)]


def alone(model: LanguageModel, prompt: Prompt, limit: int, stop: list[str]) -> str:
    pieces = generate(
        LoadedModel("model", model, TEXT), [bytes(prompt.tokens).decode()], limit, sampling=GREEDY, stop=stop
    )
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("batch", [1, 4, None])
def test_batched_greedy_texts_equal_those_of_single_prompts(model: LanguageModel, batch: int | None) -> None:
    reader = Reader(model, batch)
    texts = dict(write(reader, TEXT, prompts(), 12, [], GREEDY))
    assert texts == {index: alone(model, prompt, 12, []) for index, prompt in enumerate(prompts())}
    assert len(set(texts.values())) > 2 and reader.counts.generated == 12 * len(texts)
    if batch is None:
        assert reader.counts.computed - reader.counts.generated < sum(len(prompt.tokens) for prompt in prompts())


def test_a_stop_string_ends_a_text_immediately(model: LanguageModel) -> None:
    whole = dict(write(Reader(model), TEXT, prompts(), 12, [], GREEDY))
    stop = whole[1][5:7]
    reader = Reader(model)
    texts = dict(write(reader, TEXT, prompts(), 12, [stop], GREEDY))
    assert texts == {index: text.split(stop)[0] for index, text in whole.items()}
    assert reader.counts.generated == sum(
        12 if stop not in text else len(text.split(stop)[0].encode()) + len(stop.encode()) for text in whole.values()
    )


def test_samples_do_not_depend_on_the_batch(model: LanguageModel) -> None:
    sampling = SamplingParams(temperature=1.0, top_k=20)
    one, many = (dict(write(Reader(model, n), TEXT, prompts(), 8, ["e"], sampling)) for n in (1, 32))
    assert one == many and one[0] != one[2]  # the same prompt with another seed


def test_no_tokens_are_no_text(model: LanguageModel) -> None:
    assert dict(write(Reader(model), TEXT, prompts()[:2], 0, [], GREEDY)) == {0: "", 1: ""}
