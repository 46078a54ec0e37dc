"""Through transformers, every learner gives the numbers that it gives here: padded, in pieces, greedy and by beams."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.offline import generate
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.storage.checkpoint import Checkpoint
from tests.evaluation.models import ATTENTION, DELTA, saved
from tests.interop.huggingface.auto_classes.models import (
    EVERYTHING,
    blocks,
    each_learner,
    greedy,
    load,
    pair,
    tokens,
    transformers,
)

CLOSE = {"rtol": 0, "atol": 1e-5}
STARTS = (4, 9, 0)  # columns of padding on the left of each row


@each_learner
@torch.no_grad()
def test_logits_and_texts_are_ours(tmp_path: Path, case: dict[str, Any]) -> None:
    ours, theirs = pair(tmp_path / "model", blocks(case))
    text, mask = tokens(), torch.ones(3, 13, dtype=torch.int64)
    torch.testing.assert_close(theirs(text).logits, ours(text)[0], rtol=0, atol=0)
    for row, start in enumerate(STARTS):
        mask[row, :start] = 0
    padded = theirs(text, attention_mask=mask).logits
    first = theirs(text[:, :5], attention_mask=mask[:, :5])
    pieces = theirs(text[:, 5:], attention_mask=mask, past_key_values=first.past_key_values).logits
    written = theirs.generate(text, attention_mask=mask, max_new_tokens=6, do_sample=False)
    for row, start in enumerate(STARTS):
        alone = text[row : row + 1, start:]
        torch.testing.assert_close(padded[row, start:], ours(alone)[0][0], **CLOSE)
        torch.testing.assert_close(pieces[row, max(0, start - 5) :], ours(alone)[0][0, max(0, 5 - start) :], **CLOSE)
        assert torch.equal(written[row, 13:], greedy(ours, alone, 6))


@torch.no_grad()
def test_greedy_texts_are_those_of_synthe_generate(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", EVERYTHING, confidence={}, depth={"min": 1}, blocks=3)
    prompts = ["the sea", "a"]
    texts = ["", ""]
    for delta in generate(LoadedModel.load(path), prompts, 12, sampling=SamplingParams(temperature=0.0)):
        texts[delta.row] += delta.text
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left", pad_token="<|endoftext|>")
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    written = load(path).generate(**inputs, max_new_tokens=12, do_sample=False)
    assert tokenizer.batch_decode(written[:, inputs.input_ids.shape[1] :], skip_special_tokens=True) == texts


@torch.no_grad()
def test_generation_has_the_same_answers_with_a_cache_and_without(tmp_path: Path) -> None:
    _, model = pair(tmp_path / "model", EVERYTHING, confidence={}, depth={"min": 1}, blocks=3)
    text, mask = tokens(), torch.ones(3, 13, dtype=torch.int64)
    mask[0, :4] = mask[2, 9:] = 0
    options: list[dict[str, Any]] = [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.3, "do_sample": False},
        {"do_sample": True, "num_return_sequences": 2, "temperature": 0.8, "top_k": 20},
        {"do_sample": False, "repetition_penalty": 1.4},
    ]
    for each in options:
        with_cache, without = (
            (torch.manual_seed(5), model.generate(text, attention_mask=mask, max_new_tokens=8, use_cache=use, **each))[
                1
            ]
            for use in (True, False)
        )
        assert torch.equal(with_cache, without), each


@torch.no_grad()
def test_a_cache_is_continued_and_forked(tmp_path: Path) -> None:
    _, model = pair(tmp_path / "model", DELTA)
    text = tokens(2)
    cache = model(text[:, :7]).past_key_values
    fork = copy.deepcopy(cache)
    assert cache.get_seq_length() == 7 and cache.batch_size == 2
    whole = model.generate(text, max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(text, past_key_values=cache, max_new_tokens=5, do_sample=False), whole)
    assert fork.get_seq_length() == 7 and cache.get_seq_length() == 13 + 4
    assert torch.equal(model.generate(text, past_key_values=fork, max_new_tokens=5, do_sample=False), whole)
    twice = copy.deepcopy(model(text).past_key_values)
    twice.batch_repeat_interleave(2)
    logits = model(text[:, :1].repeat_interleave(2, 0), past_key_values=twice).logits
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)


@torch.no_grad()
def test_embeddings_may_stand_for_tokens(tmp_path: Path) -> None:
    _, model = pair(tmp_path / "model", DELTA)
    text, mask = tokens(2), torch.ones(2, 13)
    mask[0, :3] = 0
    expected = model(text, attention_mask=mask).logits[:, -2:]
    embedded = model(inputs_embeds=model.get_input_embeddings()(text), attention_mask=mask, logits_to_keep=2)
    torch.testing.assert_close(embedded.logits, expected, **CLOSE)


def test_what_the_model_cannot_honour_is_refused_in_words(tmp_path: Path) -> None:
    _, model = pair(tmp_path / "model", DELTA)
    text = tokens(2)
    with pytest.raises(InputError, match="past_key_values is a DynamicCache"):
        model(text, past_key_values=transformers.DynamicCache())
    with pytest.raises(InputError, match="position_ids are not those"):
        model(text, position_ids=torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6]]))
    assert model(text, position_ids=torch.arange(13)[None]).logits.shape == (2, 13, 257)
    with pytest.raises(InputError, match="output_attentions is given"):
        model(text, output_attentions=True)
    with pytest.raises(InputError, match=r"attention_mask is \[2, 1, 13, 13\]"):
        model(text, attention_mask=torch.ones(2, 1, 13, 13))
    with pytest.raises(InputError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(InputError, match="cannot be shortened"):
        model(text).past_key_values.crop(1)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(text[:1], max_new_tokens=4, prompt_lookup_num_tokens=2)


def test_types_devices_and_sizes(tmp_path: Path) -> None:
    ours, model = pair(tmp_path / "model", DELTA, tie=False)
    text = tokens(2)
    expected = model(text).logits
    for device in ("cpu", "auto"):
        torch.testing.assert_close(load(tmp_path / "model", device_map=device)(text).logits, expected, rtol=0, atol=0)
    narrow = load(tmp_path / "model", dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16 and narrow(text).logits.dtype == torch.bfloat16
    torch.testing.assert_close(narrow(text).logits, ours.bfloat16()(text)[0], rtol=0, atol=0)
    wide = load(tmp_path / "model", dtype=torch.float64)(text).logits
    torch.testing.assert_close(wide.float(), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_models_of_published_shapes(tmp_path: Path) -> None:
    """Learned positions, LayerNorm, scaled and bounded logits with a bias, blocks that differ."""
    shape: dict[str, Any] = {
        "positions": 16, "norm": "layer", "embedding_scale": 3.0, "head_bias": True, "logit_cap": 4.0,
        "logit_scale": 0.5, "blocks": 3, "embed_norm": False, "sequence": 16,
    }  # fmt: skip
    ours, model = pair(tmp_path / "model", [ATTENTION, DELTA], **shape)
    text = tokens(2, 9)
    torch.testing.assert_close(model(text).logits, ours(text)[0], rtol=0, atol=0)
    assert model.config.max_position_embeddings == 16
    assert torch.equal(model.generate(text[:1], max_new_tokens=7, do_sample=False)[0, 9:], greedy(ours, text[:1], 7))
    with pytest.raises(InputError, match="longer than 16 tokens"):
        model(tokens(2, 17))
    model.resize_token_embeddings(260)
    torch.testing.assert_close(model(text).logits[..., :257], ours(text)[0], **CLOSE)
    model.save_pretrained(tmp_path / "saved")
    back = Checkpoint.open(tmp_path / "saved").model().eval()
    torch.testing.assert_close(back(text)[0], model(text).logits, rtol=0, atol=0)


@pytest.mark.parametrize("tie", [True, False])
def test_the_vocabulary_can_be_resized(tmp_path: Path, tie: bool) -> None:
    _, model = pair(tmp_path / "model", DELTA, tie=tie)
    text = tokens(2)
    expected = model(text).logits
    model.resize_token_embeddings(264)
    assert (model.head.weight is model.embedding.weight) == tie
    torch.testing.assert_close(model(text).logits[..., :257], expected, **CLOSE)
    model.save_pretrained(tmp_path / "larger")
    torch.testing.assert_close(load(tmp_path / "larger")(text).logits, model(text).logits, rtol=0, atol=0)


def test_the_model_without_its_head_gives_what_the_head_reads(tmp_path: Path) -> None:
    """TRL computes logits itself: with the head's matrix, its bias and the config's cap."""
    ours, model = pair(tmp_path / "model", DELTA, logit_cap=1.5, logit_scale=0.3, head_bias=True, tie=False)
    text, mask = tokens(), torch.ones(3, 13, dtype=torch.int64)
    mask[0, :4] = 0
    hidden = model.base_model(input_ids=text, attention_mask=mask, use_cache=False).last_hidden_state
    head, cap = model.get_output_embeddings(), model.config.final_logit_softcapping
    logits = cap * torch.tanh((hidden @ head.weight.T + head.bias) / cap)
    expected = model(text, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits[1:], ours(text[1:])[0], rtol=1e-5, atol=1e-6)
