"""Models of transformers keep a row's bits whatever is beside it, where their modules can be swapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.lora_linear import linear_maps
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.outputs import TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.layers.adapter_batch import use_adapters
from synthe_core.ops.linear import products_are_batch_invariant

transformers = pytest.importorskip("transformers")
from synthe_core.interop.huggingface import backend  # noqa: E402
from synthe_core.interop.huggingface.invariant_modules import use_primitives  # noqa: E402
from synthe_core.interop.huggingface.transformers_model import TransformersModel  # noqa: E402
from synthe_core.interop.huggingface.transformers_trial import is_batch_invariant  # noqa: E402
from synthe_core.layers.projection import Linear  # noqa: E402
from tests.interop.huggingface.served_models import folder, gpt2, model_pair, prompts, read_and_continue  # noqa: E402, F401  (a fixture)

INVARIANT = ExecutionContext(batch_invariant=True)


@pytest.fixture
def invariant_products() -> None:
    if not products_are_batch_invariant():
        pytest.skip("products of this processor depend on their rows even in fours")


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
    served = backend.load(folder(tmp_path / kind, kind))
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
    served = backend.load(folder(tmp_path / "m", "Llama"))
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
        assert not backend.load(path).batch_invariant
        return
    inner = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    mlp = inner.model.layers[1].mlp
    if fault == "activation":
        mlp.act_fn = OwnActivation()
    else:
        mlp.up_proj.__class__ = OwnLinear
    use_primitives(inner)
    model = TransformersModel(inner)
    with INVARIANT.activate():
        assert not is_batch_invariant(model)
    mlp.act_fn, mlp.up_proj = torch.nn.ReLU(), Linear.sharing(mlp.up_proj)
    with INVARIANT.activate():
        assert is_batch_invariant(model) == products_are_batch_invariant()


class OwnActivation(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x)


class OwnLinear(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t()
