"""The captured step gives the numbers of ordinary passes, in place, whatever rows come and go.

The CPU captures nothing: the step runs as it is, with the same buffers that a CUDA graph would read and write.
"""

from __future__ import annotations

import pytest
import torch

from synthe_core import state as states
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.inference import captured_decode
from synthe_core.inference.captured_decode import CapturedDecoder, refusal, uncaptured
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import Request
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from tests.inference.conftest import GREEDY

RECURRENT = [{"type": "delta", "heads": 2}, {"type": "kalman"}, {"type": "mlp", "hidden": 16}]


def model_of(block=RECURRENT, **settings) -> LanguageModel:
    torch.manual_seed(0)
    spec = ModelSpec.model_validate({"width": 16, "blocks": 2, "block": block, "tie": True} | settings)
    return LanguageModel(spec, 31).eval()


@torch.inference_mode()
def test_steps_are_those_of_ordinary_passes_as_rows_come_and_go():
    model = model_of()
    decoder = CapturedDecoder(model, uncaptured)
    tokens = torch.randint(31, (6, 12))
    _, state = model.next_logits(tokens[:3, :4])
    ours = state
    for index, rows in ((4, [0, 1, 2]), (5, [0, 1, 2]), (6, [0, 2]), (7, [0, 2]), (8, [0, 2, 2, 0, 0])):
        at = torch.tensor(rows[: states.rows(state)] if index != 8 else [0, 1, 1, 0, 0])
        if len(at) != states.rows(state) or index == 6:
            picked = torch.tensor([0, 2]) if index == 6 else at
            state, ours = states.take(state, picked), states.take(ours, picked)
        step = tokens[: states.rows(state), index : index + 1]
        expected, state = model.next_logits(step, state)
        output = decoder(step, ours)
        assert output is not None
        ours = output.state
        assert torch.allclose(output.logits, expected, atol=1e-6)
        for (_, a), (_, b) in zip(states.named_leaves(ours), states.named_leaves(state), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    assert set(decoder._steps) == {2, 4, 8}


@torch.inference_mode()
def test_the_state_is_never_copied_between_steps_of_one_batch(monkeypatch):
    model = model_of()
    decoder = CapturedDecoder(model, uncaptured)
    output = decoder(torch.zeros(2, 1, dtype=torch.int64), model.init_state(2))
    first = [leaf.data_ptr() for _, leaf in states.named_leaves(output.state)]
    loaded = []
    monkeypatch.setattr(captured_decode, "_load", lambda mine, leaf: loaded.append(mine.data_ptr() != leaf.data_ptr()))
    output = decoder(torch.ones(2, 1, dtype=torch.int64), output.state)
    assert not any(loaded)
    assert first == [leaf.data_ptr() for _, leaf in states.named_leaves(output.state)]


@torch.inference_mode()
def test_more_rows_than_buckets_are_left_to_ordinary_passes():
    model = model_of([{"type": "delta", "heads": 2}, {"type": "experts", "experts": 4, "top_k": 2, "hidden": 8}])
    decoder = CapturedDecoder(model, uncaptured)
    assert decoder.buckets == (1, 2, 4, 8, 16, 32)
    assert decoder(torch.zeros(33, 1, dtype=torch.int64), model.init_state(33)) is None


@pytest.mark.parametrize(
    "block,reason",
    [
        (RECURRENT, None),
        ([{"type": "attention", "heads": 2}], "grows with the text"),
        (
            [{"type": "momentum"}, {"type": "attention", "heads": 2, "when": {"signal": "random", "below": 0.5}}],
            "grows",
        ),
    ],
)
def test_refusals_are_in_words(block, reason, monkeypatch):
    assert refusal(model_of(block)) == "cpu has no graphs of launches"
    monkeypatch.setitem(captured_decode.CAPTURES, "cpu", uncaptured)
    said = refusal(model_of(block))
    assert said is None if reason is None else reason in said


def test_the_engine_generates_the_same_texts(memory, monkeypatch):
    """Sequences of several lengths join and leave; each has the tokens of a loop of ordinary passes."""
    prompts, counts = [b"Once upon", b"a", b"There was", b"zz top"], [9, 3, 14, 6]

    def texts() -> list[list[int]]:
        engine = Engine([LoadedModel("model", memory.model, ByteTokenizer())], cache_bytes=0, max_state_bytes=1 << 28)
        made = [
            engine.add_request(Request("model", tuple(p), n, GREEDY, ignore_eos=True), lambda output: False)
            for p, n in zip(prompts, counts, strict=True)
        ]
        while engine.has_unfinished:
            engine.step()
        return [each.output_token_ids for each in made]

    expected = texts()
    steps = []
    monkeypatch.setitem(captured_decode.CAPTURES, "cpu", lambda step: lambda: steps.append(step()))
    assert texts() == expected
    assert len(steps) == max(counts) - 1
