"""Models of transformers behind the engine's interface: what they write is what transformers' own `generate` writes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core import state as states
from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.lora_linear import attach, linear_maps, with_adapter
from synthe_core.errors import InputError
from synthe_core.hardware.placement import Chosen
from synthe_core.hardware.probe import probe
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.layers.adapter_batch import NONE, AdapterBatch, use_adapters
from synthe_core.ops.linear import products_are_batch_invariant
from tests.inference.conftest import offline_tokens
from tests.interop.huggingface.backend_families import family

transformers = pytest.importorskip("transformers")
from synthe_core.interop.huggingface import backend, pretrained  # noqa: E402
from synthe_core.interop.huggingface.published import Published  # noqa: E402
from synthe_core.interop.load import load_model  # noqa: E402
from tests.interop.huggingface.served_models import (  # noqa: E402
    answers,
    folder,
    model_pair,  # noqa: F401  (a fixture)
    prompts,
    read_and_continue,
)


def own(model: Any, prompt: list[int], count: int) -> list[int]:
    """What transformers writes."""
    input_ids = torch.tensor([prompt])
    generated = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        repetition_penalty=1.0,
    )
    return generated[0, len(prompt) :].tolist()


def written(served: Any, texts: list[list[int]], count: int) -> list[list[int]]:
    return offline_tokens(served.model, texts, count)


def test_greedy_texts_equal_those_of_transformers(pair: Any) -> None:
    served, peer = pair
    texts = prompts(served, 9, 1, 17, 5)
    expected = [own(peer, text, 20) for text in texts]
    assert written(served, texts[:1], 20) == expected[:1]
    assert written(served, texts, 20) == expected


def test_logits_are_the_same_in_pieces_and_in_batches(pair: Any) -> None:
    served, peer = pair
    text, other = (torch.tensor([each]) for each in prompts(served, 30, 12))
    with torch.inference_mode():
        expected = peer(text).logits
    state, pieces = None, []
    for piece in text.split([1, 13, 2, 14], 1):
        logits, state = served.model(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-4, atol=1e-4)
    _, read = served.model(text[:, :25])
    _, short = served.model(other)
    joined = states.join([short, read])  # the shorter row is padded in front
    late, after = served.model(torch.cat([other[:, :5], text[:, 25:]]), joined)
    torch.testing.assert_close(late[1], expected[0, 25:], rtol=1e-4, atol=1e-4)
    assert after.position.tolist() == [17, 30]


def test_a_row_continues_after_leaving_and_rejoining_a_batch(pair: Any) -> None:
    """What batching, the state cache and sessions do with a state: take, put, join, save."""
    served, peer = pair
    text, other = prompts(served, 21, 8)
    with torch.inference_mode():
        expected = peer(torch.tensor([text])).logits[0, -1]
    _, state = served.model.next_logits(torch.tensor([text[:19]]))
    _, beside = served.model.next_logits(torch.tensor([other]))
    restored = states.from_tensors(served.model.init_state(1), states.to_tensors(state))
    batch = states.put(states.join([beside, beside, beside]), torch.tensor([1]), restored)
    mixed, batch = served.model.next_logits(torch.tensor([[1, 2], text[19:], [3, 3]]), batch, torch.tensor([1, 2, 0]))
    torch.testing.assert_close(mixed[1], expected, rtol=1e-4, atol=1e-4)
    alone = states.take(batch, torch.tensor([0]))
    logits, last = served.model.next_logits(torch.tensor([[9]]), alone)
    with torch.inference_mode():
        torch.testing.assert_close(logits[0], peer(torch.tensor([[*other, 1, 9]])).logits[0, -1], rtol=1e-4, atol=1e-4)
    length, bound = last.blocks[0][0].keys.shape[1], served.model.form.window_bound(0)
    assert last.position.item() == 10 and length == min(10, bound or 10)  # no padding of longer rows is carried on


def test_memory_is_counted(pair: Any) -> None:
    served, _ = pair
    text = prompts(served, 30)[0]
    _, state = served.model.next_logits(torch.tensor([text]))
    assert states.nbytes(state) == served.model.state_bytes(30)
    assert served.model.state_bytes(1 << 20) == served.model.state_bytes(64)
    assert served.max_length == 64
    _, state = served.model.next_logits(torch.zeros(1, 65, dtype=torch.int64))
    assert states.nbytes(state) == served.model.state_bytes(64), "a row that nobody waits for does not grow past it"


def test_the_engine_serves_it(pair: Any, tmp_path: Path) -> None:
    """Batches whose rows come and go, prompts in chunks, the state cache, sessions, the limit: as `generate` has it."""
    served, peer = pair
    texts = prompts(served, 5, 30, 1, 17, 9, 22)
    greedy = {"model": served.name, "sampling": SamplingParams(temperature=0), "ignore_eos": True}
    with AsyncEngine([served], max_num_seqs=3, sessions=tmp_path) as engine:
        requests = [
            Request(prompt_token_ids=tuple(text), max_tokens=4 + 5 * i, **greedy) for i, text in enumerate(texts)
        ]
        for (tokens, end), text, request in zip(answers(engine, requests), texts, requests, strict=True):
            assert tokens == own(peer, text, request.max_tokens) and end.reason == "length"
        again = Request(prompt_token_ids=(*texts[1], *own(peer, texts[1], 9), 7), max_tokens=6, **greedy)
        ((tokens, end),) = answers(engine, [again])
        assert tokens == own(peer, list(again.prompt_token_ids), 6) and end.num_cached_tokens >= 30
        first = Request(prompt_token_ids=tuple(texts[3]), max_tokens=5, session_id="talk", **greedy)
        ((begun, _),) = answers(engine, [first])
        ((tokens, end),) = answers(
            engine, [Request(prompt_token_ids=(8, 9), max_tokens=5, session_id="talk", **greedy)]
        )
        assert tokens == own(peer, [*texts[3], *begun, 8, 9], 5) and end.num_cached_tokens > 17
        with pytest.raises(InputError, match="64"):
            engine.submit(Request(prompt_token_ids=tuple(texts[1]), max_tokens=40, **greedy))
        with pytest.raises(InputError, match="64"):
            engine.embed(served.name, [[1] * 65])
        assert engine.embed(served.name, texts[:2]).shape[0] == 2
        ((tokens, end),) = answers(engine, [Request(prompt_token_ids=(3,), max_tokens=40, session_id="talk", **greedy)])
        assert end.reason == "refused" and "64" in end.message, "a session too has its end"
        assert engine.status()["state_bytes"] == 0


def test_a_text_ends_at_every_end_token(tmp_path: Path) -> None:
    path = folder(tmp_path / "chatty", "Llama")
    served = backend.load(path)
    greedy = {"model": "chatty", "sampling": SamplingParams(temperature=0), "max_tokens": 12}
    with AsyncEngine([served]) as engine:
        ((tokens, _),) = answers(engine, [Request(prompt_token_ids=(5, 6), **greedy)])
        served.tokenizer.stops = frozenset({tokens[3]})
        ((tokens, end),) = answers(engine, [Request(prompt_token_ids=(5, 6), **greedy)])
        assert end.reason == "stop" and len(tokens) <= 4 and tokens[-1] in served.tokenizer.stops


def test_an_adapter_of_peft_is_applied(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    path = folder(tmp_path / "m", "Llama")
    served = backend.load(path)
    peer = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(path),
        peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj", "lm_head"]),
    )
    for name, parameter in peer.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    peer.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    from synthe_core.storage.checkpoint import Checkpoint

    adapter = Checkpoint.open(tmp_path / "adapter").adapter
    text = torch.tensor(prompts(served, 12))
    before, _ = served.model(text)
    with torch.inference_mode(), with_adapter(served.model, adapter):
        adapted, _ = served.model(text)
        torch.testing.assert_close(adapted, peer.eval()(text).logits, rtol=1e-4, atol=1e-4)
    after, _ = served.model(text)
    assert torch.equal(before, after) and not torch.allclose(before, adapted, atol=0.1)
    stranger = Adapter({"blocks.0.1.qkv": LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0)})
    with pytest.raises(InputError, match="the model has not"), with_adapter(served.model, stranger):
        pass


def test_tokenizer_and_template_are_loaded(tmp_path: Path) -> None:
    path = folder(tmp_path / "chatty", "Llama")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}<|turn|>")
    served = backend.load(path)
    assert served.name == "chatty"
    assert (served.tokenizer.begin, served.tokenizer.end, served.tokenizer.stops) == (0, 1, {2})
    assert served.tokenizer.chat_template == "{{ messages[0].content }}<|turn|>"


def test_bfloat16_is_served_as_stored_where_that_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "choose_precision", lambda *_: Chosen("bfloat16", "measured"))
    served = backend.load(folder(tmp_path / "half", "Llama", dtype=torch.bfloat16))
    assert served.model.init_state(1).blocks[0][0].keys.dtype == torch.bfloat16
    assert served.model.state_bytes(10) == 8 + 10 * 2 * 2 * 2 * 16 * 2
    assert served.context.batch_invariant == products_are_batch_invariant(torch.bfloat16)
    if served.context.batch_invariant:
        texts = prompts(served, 17, 3, 9)
        with served.activate():
            together, alone = (read_and_continue(served.model, rows, 32) for rows in (texts, texts[1:2]))
        assert all(torch.equal(all_[1], one[0]) for all_, one in zip(together, alone, strict=True))


def test_bfloat16_is_read_as_float32_where_that_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "choose_precision", lambda *_: Chosen("float32", "measured"))
    path = folder(tmp_path / "half", "Llama", dtype=torch.bfloat16)
    served = backend.load(path)
    assert served.model.dtype == torch.float32
    peer = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    (text,) = prompts(served, 9)
    with torch.inference_mode():
        torch.testing.assert_close(served.model(torch.tensor([text]))[0], peer(torch.tensor([text])).logits)
    hardware = replace(probe(), available=1000)
    assert pretrained.choose_dtype(Published(path), torch.device("cpu"), hardware) == torch.bfloat16, (
        "float32 needs more memory"
    )


def test_a_model_that_bfloat16_rounds_too_coarsely_is_read_as_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "choose_precision", lambda *_: Chosen("bfloat16", "measured"))
    served = backend.load(family(tmp_path / "m", "xLSTM", dtype=torch.bfloat16))  # its states are float32 in products
    assert served.model.dtype == torch.float32


def test_a_file_may_be_cut_short_while_its_model_is_served(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", "Llama")
    served = backend.load(path)
    text = torch.tensor(prompts(served, 9))
    before, _ = served.model(text)
    (path / "model.safetensors").write_bytes(b"")
    assert torch.equal(served.model(text)[0], before)


def test_two_models_of_one_shape_have_two_digests(tmp_path: Path) -> None:
    one, same, other = (
        backend.load(folder(tmp_path / name, "Llama", seed=seed)).digest
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == same != other


@pytest.mark.parametrize(
    "fault", ["hidden state", "no tokenizer", "no limit", "missing tensor", "pickle", "kind", "truncated"]
)
def test_a_folder_that_cannot_be_served_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "m"
    if fault == "hidden state":
        family(path, "RecurrentGemma")
    else:
        folder(path, "Llama")
    config = json.loads((path / "config.json").read_text())
    weights = path / "model.safetensors"
    if fault == "no tokenizer":
        (path / "tokenizer.json").unlink()
    elif fault == "no limit":
        config["max_position_embeddings"] = -1
    elif fault == "missing tensor":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        del tensors["model.norm.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif fault == "pickle":
        weights.rename(path / "pytorch_model.bin")
    elif fault == "kind":
        config["model_type"] = "unheard-of"
    elif fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        backend.load(path)
    messages = {
        "hidden state": "returns no cache", "no tokenizer": "tokenizer.json", "no limit": "length",
        "missing tensor": "norm.weight", "pickle": "pickle", "kind": "unheard-of", "truncated": "damaged",
    }  # fmt: skip
    assert messages[fault] in caught.value.message and "\n" not in caught.value.message


def test_without_transformers_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = family(tmp_path / "m", "Zamba2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="transformers, which is not installed") as caught:
        load_model(path)
    assert "synthe[hf]" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["Llama", "Gemma2"])
def test_rows_with_different_adapters_equal_single_rows(tmp_path: Path, kind: str) -> None:
    """Through prompts of different length, a token after them and the head, whatever the architecture is made of."""
    model = backend.load(folder(tmp_path / "m", kind)).model
    draw = torch.Generator().manual_seed(0)
    for slot, rank in ((1, 2), (2, 3)):
        maps = {
            name: LowRank(
                torch.randn(rank, linear.in_features, generator=draw) / 4,
                torch.randn(linear.out_features, rank, generator=draw) / 4,
                1.0,
            )
            for name, linear in linear_maps(model).items()
        }
        attach(model, Adapter(maps), slot=slot)
    indices = (2, NONE, 1, 2)
    text = torch.randint(model.vocab, (len(indices), 9), generator=draw)
    lengths = torch.tensor([8, 3, 5, 1])
    with use_adapters(AdapterBatch(indices)):
        first, state = model.next_logits(text[:, :8], lengths=lengths)
        last, _ = model(text[:, 8:], state)
    results = []
    for row, index in enumerate(indices):
        with use_adapters(AdapterBatch((index,))):
            own, state = model.next_logits(text[row : row + 1, : lengths[row]])
            torch.testing.assert_close(first[row], own[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(last[row], model(text[row : row + 1, 8:], state)[0][0], rtol=1e-4, atol=1e-4)
        results.append(own)
    with use_adapters(AdapterBatch((NONE,))):
        assert not torch.allclose(model.next_logits(text[:1, :8])[0], results[0], atol=0.1)
