"""Models of transformers behind the engine's interface: what they write is what transformers' own `generate` writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core import state as states
from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.lora_linear import attach, linear_maps, with_adapter
from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.outputs import Finished, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.layers.adapter_batch import NONE, AdapterBatch, use_adapters
from synthe_core.ops.linear import products_are_batch_invariant
from tests.inference.conftest import offline_tokens
from tests.interop.huggingface.models import add_tokenizer, published

transformers = pytest.importorskip("transformers")
from synthe_core.interop.huggingface import transformers_model  # noqa: E402
from synthe_core.interop.huggingface.invariant_modules import use_primitives  # noqa: E402
from synthe_core.layers.projection import Linear  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64},
    "Qwen2": {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64},
    "Qwen3": {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64, "head_dim": 24},
    "Mistral": {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64, "sliding_window": 7},
    "Gemma2": {  # caps its logits, scales its embedding, and every other layer sees a window only
        "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64, "head_dim": 16,
        "sliding_window": 7, "final_logit_softcapping": 3.0,
    },
    "Cohere": {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64, "logit_scale": 0.25},
    "GPTNeoX": {"intermediate_size": 96, "max_position_embeddings": 64},
    "Gemma": {  # GELU by tanh, and sizes that are no multiples of a processor's vectors
        "num_key_value_heads": 1, "intermediate_size": 97, "max_position_embeddings": 64, "head_dim": 10,
    },
}  # fmt: skip


def folder(path: Path, kind: str, **options: Any) -> Path:
    """A tiny random model of a kind, and a tokenizer."""
    inner = add_tokenizer(path)
    vocab = {"vocab_size": inner.get_vocab_size(), "num_attention_heads": 4, "num_hidden_layers": 2}
    published(path, kind, **{**vocab, **SIZES[kind], **options})
    return path


def gpt2(path: Path) -> Path:
    inner = add_tokenizer(path)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=inner.get_vocab_size(), n_embd=64, n_layer=2, n_head=4, n_positions=64)
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=[*SIZES, "GPT2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model as it is served, and transformers' own."""
    path = tmp_path_factory.mktemp("models") / request.param
    path = gpt2(path) if request.param == "GPT2" else folder(path, request.param)
    return transformers_model.load(path), transformers.AutoModelForCausalLM.from_pretrained(path).eval()


def prompts(served: Any, *lengths: int) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(3)
    return [torch.randint(served.model.vocab, (n,), generator=drawn).tolist() for n in lengths]


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
    leaf = last.blocks[0][0].keys
    assert leaf.shape[1] == last.position.item() == 10  # no padding of longer rows is carried on


def test_memory_is_counted(pair: Any) -> None:
    served, _ = pair
    text = prompts(served, 30)[0]
    _, state = served.model.next_logits(torch.tensor([text]))
    assert states.nbytes(state) == served.model.state_bytes(30)
    assert served.model.state_bytes(1 << 20) == served.model.state_bytes(64)
    assert served.max_length == 64
    _, state = served.model.next_logits(torch.zeros(1, 65, dtype=torch.int64))
    assert states.nbytes(state) == served.model.state_bytes(64), "a row that nobody waits for does not grow past it"


def answers(engine: AsyncEngine, requests: list[Request]) -> list[tuple[list[int], Finished]]:
    """What the engine writes to requests that are all there at once."""
    tickets = [engine.submit(request) for request in requests]
    outputs = [list(ticket) for ticket in tickets]
    return [([event.token_id for event in events if isinstance(event, TokenOutput)], events[-1]) for events in outputs]


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
    served = transformers_model.load(path)
    greedy = {"model": "chatty", "sampling": SamplingParams(temperature=0), "max_tokens": 12}
    with AsyncEngine([served]) as engine:
        ((tokens, _),) = answers(engine, [Request(prompt_token_ids=(5, 6), **greedy)])
        served.tokenizer.stops = frozenset({tokens[3]})
        ((tokens, end),) = answers(engine, [Request(prompt_token_ids=(5, 6), **greedy)])
        assert end.reason == "stop" and len(tokens) <= 4 and tokens[-1] in served.tokenizer.stops


def test_an_adapter_of_peft_is_applied(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    path = folder(tmp_path / "m", "Llama")
    served = transformers_model.load(path)
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
    served = transformers_model.load(path)
    assert served.name == "chatty"
    assert (served.tokenizer.begin, served.tokenizer.end, served.tokenizer.stops) == (0, 1, {2})
    assert served.tokenizer.chat_template == "{{ messages[0].content }}<|turn|>"


def test_bfloat16_is_served_as_stored(tmp_path: Path) -> None:
    served = transformers_model.load(folder(tmp_path / "half", "Llama", dtype=torch.bfloat16))
    assert served.model.init_state(1).blocks[0][0].keys.dtype == torch.bfloat16
    assert served.model.state_bytes(10) == 8 + 10 * 2 * 2 * 2 * 16 * 2
    assert served.context.batch_invariant == products_are_batch_invariant(torch.bfloat16)
    if served.context.batch_invariant:
        texts = prompts(served, 17, 3, 9)
        with served.activate():
            together, alone = (read_and_continue(served.model, rows, 32) for rows in (texts, texts[1:2]))
        assert all(torch.equal(all_[1], one[0]) for all_, one in zip(together, alone, strict=True))


def test_two_models_of_one_shape_have_two_digests(tmp_path: Path) -> None:
    one, same, other = (
        transformers_model.load(folder(tmp_path / name, "Llama", seed=seed)).digest
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == same != other


@pytest.mark.parametrize(
    "fault", ["mamba", "no tokenizer", "no limit", "missing tensor", "pickle", "kind", "truncated"]
)
def test_a_folder_that_cannot_be_served_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "m"
    if fault == "mamba":
        add_tokenizer(path)
        published(path, "Mamba", state_size=4, num_hidden_layers=1, vocab_size=270)
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
        transformers_model.load(path)
    messages = {
        "mamba": "takes no", "no tokenizer": "tokenizer.json", "no limit": "length", "missing tensor": "norm.weight",
        "pickle": "pickle", "kind": "unheard-of", "truncated": "damaged",
    }  # fmt: skip
    assert messages[fault] in caught.value.message and "\n" not in caught.value.message


def test_without_transformers_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="transformers, which is not installed") as caught:
        transformers_model.load(tmp_path)
    assert "synthe[hf]" in str(caught.value.hint)


def test_native_checkpoints_are_not_loaded_as_transformers_models(tmp_path: Path) -> None:
    assert not transformers_model.is_published(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert transformers_model.is_published(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert not transformers_model.is_published(tmp_path)


@pytest.mark.parametrize("kind", ["Llama", "Gemma2"])
def test_rows_with_different_adapters_equal_single_rows(tmp_path: Path, kind: str) -> None:
    """Through prompts of different length, a token after them and the head, whatever the architecture is made of."""
    model = transformers_model.load(folder(tmp_path / "m", kind)).model
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


INVARIANT = ExecutionContext(batch_invariant=True)


@pytest.fixture
def invariant_products() -> None:
    if not products_are_batch_invariant():
        pytest.skip("products of this processor depend on their rows even in fours")


def read_and_continue(model: Any, texts: list[list[int]], size: int, steps: int = 9) -> list[torch.Tensor]:
    """Logits [B, V] after each of `texts`, read in one pass of `size` tokens, and after each of `steps` more."""
    tokens = torch.zeros(len(texts), size, dtype=torch.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    logits, state = model.next_logits(tokens, lengths=torch.tensor([len(text) for text in texts]))
    results = [logits]
    for _ in range(steps):
        logits, state = model.next_logits(logits.argmax(-1, keepdim=True), state)
        results.append(logits)
    return results


@pytest.mark.usefixtures("invariant_products")
def test_other_rows_do_not_change_a_row_by_a_bit(pair: Any) -> None:
    served, peer = pair
    if served.model.inner.config.model_type == "gemma2":
        assert not served.batch_invariant  # its attention multiplies matrices by torch's own function
        return
    assert served.batch_invariant
    texts = prompts(served, 17, 3, 32, 1, 9, 31, 5)
    with served.activate():
        together = read_and_continue(served.model, texts, 32)
        for rows in ([0], [1], [2], [3], [6], [1, 5], [4, 3, 0]):
            few = read_and_continue(served.model, [texts[row] for row in rows], 32)
            for all_, part in zip(together, few, strict=True):
                assert torch.equal(part, all_[rows])
        for row, text in enumerate(texts):
            written = [*text, *(int(logits[row].argmax()) for logits in together[:-1])]
            with torch.inference_mode():
                expected = peer(torch.tensor([written])).logits[0, len(text) - 1 :]
            torch.testing.assert_close(torch.stack([each[row] for each in together]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("invariant_products")
@pytest.mark.parametrize("kind", ["Llama", "Gemma"])
def test_other_requests_do_not_change_an_answer_by_a_bit(tmp_path: Path, kind: str) -> None:
    """Through the engine: prompts of several chunks, rows that come and go."""
    served = transformers_model.load(folder(tmp_path / kind, kind))
    greedy = {"model": kind, "sampling": SamplingParams(temperature=0), "ignore_eos": True, "return_logprob": True}
    requests = [
        Request(prompt_token_ids=tuple(text), max_tokens=3 + 4 * i, **greedy)
        for i, text in enumerate(prompts(served, 5, 40, 1, 17, 9, 35))
    ]

    def run(engine: AsyncEngine, several: list[Request]) -> list[list[TokenOutput]]:
        tickets = [engine.submit(request) for request in several]
        return [[event for event in ticket if isinstance(event, TokenOutput)] for ticket in tickets]

    with AsyncEngine([served], max_num_seqs=4, cache_bytes=0) as engine:
        assert engine.status()["exact"]
        together = run(engine, requests)
        for request, expected in zip(requests, together, strict=True):
            (alone,) = run(engine, [request])
            assert [(each.token_id, each.logprob) for each in alone] == [(e.token_id, e.logprob) for e in expected]
            assert len(alone) == request.max_tokens


@pytest.mark.usefixtures("invariant_products")
def test_rows_with_different_adapters_have_the_bits_of_single_rows(tmp_path: Path) -> None:
    served = transformers_model.load(folder(tmp_path / "m", "Llama"))
    draw = torch.Generator().manual_seed(0)
    adapters = [
        Adapter(
            {
                name: LowRank(
                    torch.randn(rank, linear.in_features, generator=draw) / 4,
                    torch.randn(linear.out_features, rank, generator=draw) / 4,
                    1.0,
                )
                for name, linear in linear_maps(served.model).items()
            }
        )
        for rank in (2, 3)
    ]
    rows = [adapters[1], None, adapters[0], adapters[1]]
    texts = prompts(served, 8, 3, 5, 1)
    with served.activate():
        plain = read_and_continue(served.model, texts, 8)
        with use_adapters(served.adapter_batch(rows)):
            together = read_and_continue(served.model, texts, 8)
        for row, adapter in enumerate(rows):
            with use_adapters(served.adapter_batch([adapter])):
                alone = read_and_continue(served.model, texts[row : row + 1], 8)
            assert all(torch.equal(one[0], all_[row]) for one, all_ in zip(alone, together, strict=True))
            assert torch.equal(plain[0][row], together[0][row]) == (adapter is None)


@pytest.mark.parametrize("kind", ["Llama", "Gemma", "Gemma2", "GPT2"])
def test_without_batch_invariance_the_bits_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    """The modules that call primitives compute what they replace, and no parameter is copied."""
    path = gpt2(tmp_path) if kind == "GPT2" else folder(tmp_path, kind)
    peer = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    before = dict(peer.named_parameters())
    text = torch.tensor([[1, 5, 9, 2, 7], [3, 3, 8, 4, 6]])
    with torch.inference_mode():
        expected = peer(text).logits
    use_primitives(peer)
    with torch.inference_mode():
        assert torch.equal(peer(text).logits, expected)
    assert all(before[name] is parameter for name, parameter in peer.named_parameters())
    assert not any(type(module) is torch.nn.Linear for module in peer.modules())
    assert any(isinstance(module, Linear) for module in peer.modules())


@pytest.mark.parametrize("fault", ["activation", "product", "angles"])
def test_a_model_with_functions_of_its_own_is_not_batch_invariant(tmp_path: Path, fault: str) -> None:
    options = (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}} if fault == "angles" else {}
    )
    path = folder(tmp_path / "m", "Llama", **options)
    if fault == "angles":
        assert not transformers_model.load(path).batch_invariant
        return
    inner = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    mlp = inner.model.layers[1].mlp
    if fault == "activation":
        mlp.act_fn = OwnActivation()
    else:
        mlp.up_proj.__class__ = OwnLinear
    use_primitives(inner)
    model = transformers_model.TransformersModel(inner)
    with INVARIANT.activate():
        assert not model.is_batch_invariant()
    mlp.act_fn, mlp.up_proj = torch.nn.ReLU(), Linear.sharing(mlp.up_proj)
    with INVARIANT.activate():
        assert model.is_batch_invariant() == products_are_batch_invariant()


class OwnActivation(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x)


class OwnLinear(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t()
