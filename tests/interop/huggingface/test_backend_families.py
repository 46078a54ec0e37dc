"""Every kind of cache that transformers has is a state: pieces, batches, forks and files give transformers' logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.model.session import Session
from tests.interop.huggingface.backend_families import ATTENTION, LENGTH, RECURRENT, REFUSED, family

transformers = pytest.importorskip("transformers")
from synthe_core.interop.huggingface import backend  # noqa: E402
from tests.interop.huggingface.served_models import answers, prompts  # noqa: E402

ONE_BY_ONE = {"Jamba", "Mamba", "FalconMamba"}
"""Their full-sequence scan ignores the state before it, so that continuations are read token by token."""
ALONE = {"Rwkv"}
"""Its pass over one token mixes the rows of a batch."""


@pytest.fixture(scope="module", params=[*RECURRENT, *ATTENTION])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model as it is served, and transformers' own."""
    path = family(tmp_path_factory.mktemp("models") / request.param, request.param)
    peer = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    peer.config.rescale_every = 0  # RWKV's halving of activations, for float16, which changes what LayerNorm adds
    return backend.load(path), peer


@torch.inference_mode()
def whole(peer: Any, text: list[int]) -> Tensor:
    """Logits [T, V] of a text that transformers reads at once, without a cache."""
    return peer(input_ids=torch.tensor([text]), use_cache=False).logits[0].float()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_at_once_in_pieces_and_in_a_batch(pair: Any) -> None:
    served, peer = pair
    model, texts = served.model, prompts(served, 30, 12, 1, 12)
    expected = [whole(peer, text) for text in texts]
    at_once, _ = model(torch.tensor(texts[:1]))
    close(at_once[0], expected[0])
    state, pieces = None, []
    for piece in torch.tensor(texts[:1]).split([1, 13, 2, 14], 1):
        logits, state = model(piece, state)
        pieces.append(logits[0])
    close(torch.cat(pieces), expected[0])
    tokens = torch.zeros(4, 30, dtype=torch.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    lengths = torch.tensor([len(text) for text in texts])
    logits, after = model(tokens, lengths=lengths)
    for row, text in enumerate(texts):
        close(logits[row, : len(text)], expected[row])
    assert after.position.tolist() == lengths.tolist()
    short, late = model(tokens[:, :10], lengths=lengths.clamp_max(10))[1], torch.tensor([[*texts[0][10:13]]] * 4)
    logits, _ = model(late, short, torch.tensor([3, 2, 1, 3]))
    for row, count in enumerate([3, 2, 1, 3]):
        close(logits[row, :count], whole(peer, texts[row][:10] + late[row, :count].tolist())[-count:])


def test_twenty_decoded_tokens(pair: Any) -> None:
    """Rows of different lengths, step by step."""
    served, peer = pair
    texts = prompts(served, 9, 21, 1)
    tokens = torch.zeros(3, 21, dtype=torch.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    lengths = torch.tensor([9, 21, 1])
    logits, state = served.model.next_logits(tokens, lengths=lengths)
    written, read = [list(text) for text in texts], [logits]
    for _ in range(20):
        chosen = logits.argmax(-1, keepdim=True)
        written = [[*text, int(token)] for text, token in zip(written, chosen, strict=True)]
        logits, state = served.model.next_logits(chosen, state)
        read.append(logits)
    for row, text in enumerate(written):
        close(torch.stack([each[row] for each in read]), whole(peer, text)[-21:])
    assert states.nbytes(states.take(state, torch.tensor([1]))) == served.model.state_bytes(41)


def test_forks_rejoining_and_files(pair: Any, tmp_path: Path) -> None:
    served, peer = pair
    model, (text, other, end) = served.model, prompts(served, 19, 8, 4)
    _, state = model.next_logits(torch.tensor([text]))
    before = states.map_leaves(Tensor.clone, state)
    first, _ = model.next_logits(torch.tensor([end]), state)
    model.next_logits(torch.tensor([[5]]), state)  # a fork that is dropped
    again, _ = model.next_logits(torch.tensor([end]), state)
    assert torch.equal(first, again)
    assert all(torch.equal(left, right) for left, right in zip(leaves(state), leaves(before), strict=True))
    Session(state, torch.tensor([end[0]])).save(tmp_path / "s", model)
    loaded = Session.load(tmp_path / "s", model)
    _, beside = model.next_logits(torch.tensor([other]))
    batch = states.put(states.join([beside, beside, beside]), torch.tensor([1]), loaded.state)
    mixed, batch = model.next_logits(torch.tensor([[1, 2, 3, 4], end, [3] * 4]), batch, torch.tensor([1, 4, 2]))
    close(mixed[1], whole(peer, [*text, *end])[-1])
    logits, _ = model.next_logits(torch.tensor([[9]]), states.take(batch, torch.tensor([2])))
    close(logits[0], whole(peer, [*other, 3, 3, 9])[-1])


def test_the_engine_serves_it(pair: Any, tmp_path: Path) -> None:
    """Rows that come and go, a prefix that is cached, a session: the answers are those of the model without a cache."""
    served, peer = pair
    texts = prompts(served, 5, 30, 1, 17)
    texts.append([*texts[1], 7])
    greedy = {"model": served.name, "sampling": SamplingParams(temperature=0), "ignore_eos": True}

    def expected(text: list[int], count: int) -> list[int]:
        text = list(text)
        for _ in range(count):
            text.append(int(whole(peer, text)[-1].argmax()))
        return text[-count:]

    with AsyncEngine([served], max_num_seqs=3, sessions=tmp_path) as engine:
        requests = [Request(prompt_token_ids=tuple(text), max_tokens=3 + i, **greedy) for i, text in enumerate(texts)]
        for (tokens, _), text, request in zip(answers(engine, requests), texts, requests, strict=True):
            assert tokens == expected(text, request.max_tokens)
        again = Request(prompt_token_ids=(*texts[1], 7, 8), max_tokens=4, **greedy)
        ((tokens, end),) = answers(engine, [again])
        assert tokens == expected([*texts[1], 7, 8], 4) and end.num_cached_tokens >= 16
        turn = {"max_tokens": 5, "session_id": "talk", **greedy}
        ((begun, _),) = answers(engine, [Request(prompt_token_ids=tuple(texts[3]), **turn)])
        ((tokens, _),) = answers(engine, [Request(prompt_token_ids=(8, 9), **turn)])
        assert tokens == expected([*texts[3], *begun, 8, 9], 5)


def test_what_a_family_can_read_in_one_pass_is_noticed(pair: Any) -> None:
    served, _ = pair
    kind = next(kind for kind in RECURRENT | ATTENTION if kind == served.name)
    assert served.model.reading == (kind not in ONE_BY_ONE, kind not in ALONE)
    assert served.max_length == (None if kind in {"xLSTM", "Mamba", "Mamba2", "FalconMamba"} else LENGTH)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_keeps_its_state_to_itself_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=f"{kind}ForCausalLM cannot run: it returns no cache: what it remembers"):
        backend.load(family(tmp_path / "m", kind))


def leaves(state: Any) -> list[Tensor]:
    return [leaf for _, leaf in states.named_leaves(state)]
