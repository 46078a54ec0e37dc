"""A pass of one token in one call: the numbers of the operators, row by row, for every form of its learners."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core import state as states
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.inference.fused_decoder import FusedDecoder, refusal
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.thread_choice import PASSES, ROUNDS
from synthe_core.layers.adapter_batch import NONE, AdapterBatch, use_adapters
from synthe_core.model.language_model import LanguageModel, ModelState
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.fused_decode import unavailable
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, save, weights
from synthe_core.storage.manifest import Manifest
from tests.inference.conftest import adapter_of, started, tokens_of

pytestmark = pytest.mark.skipif(unavailable("cpu") is not None, reason=str(unavailable("cpu")))

ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {"heads": 4},
    "grouped": {"heads": 6, "kv_heads": 2, "head_size": 10},
    "odd": {"heads": 3, "head_size": 7, "rope": None},
    "window": {"heads": 4, "window": 9},
    "window of one": {"heads": 4, "window": 1},
    "without positions": {"heads": 4, "rope": None, "qk_norm": False},
    "some channels": {"heads": 4, "rope_size": 4},
    "no norm": {"heads": 4, "qk_norm": False},
    "weighted norm": {"heads": 4, "kv_heads": 2, "qk_norm": "weighted"},
    "biases": {"heads": 4, "bias": "all"},
    "scale": {"heads": 4, "scale": 0.7},
    "stretched": {"heads": 4, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "gate": {"heads": 6, "kv_heads": 2, "head_size": 10, "gate": True},
    "cap": {"heads": 4, "logit_cap": 0.7},
    "clip": {"heads": 4, "clip": 0.4},
    "joint norm": {"heads": 6, "kv_heads": 3, "qk_norm": "joint"},
}
RESIDUALS: dict[str, list[dict[str, Any]]] = {
    "norm after": [{"norm": "post"}, {"norm": "post"}],
    "norms before and after": [{"norm": "both"}, {"norm": "both", "scale": 0.3}],
    "scaled": [{"scale": 0.22}, {"scale": 0.22, "input_scale": 1.4, "skip": 0.9}],
    "side by side": [{}, {"parallel": True}],
    "side by side, one norm": [{}, {"norm": "shared"}],
    "three side by side": [{}, {"parallel": True}, {"norm": "shared"}],
    "side by side, each scaled": [{"input_scale": 0.6}, {"norm": "shared", "input_scale": 1.7}],
    "onto the normalised stream, scaled": [{"norm": "stream", "input_scale": 0.6}, {"norm": "stream", "skip": 0.5}],
    "side by side after another": [{}, {"norm": "both"}, {"norm": "shared"}],
    "onto the normalised stream": [{"norm": "stream", "skip": 3.5}, {"norm": "stream", "scale": 0.5}],
}


def model_of(attention: dict[str, Any], mlp: dict[str, Any] | None = None, **more: Any) -> LanguageModel:
    block = [{"type": "attention", **attention}, {"type": "mlp", "hidden": 44, **(mlp or {})}]
    torch.manual_seed(3)
    model = LanguageModel(ModelSpec.model_validate({"width": 48, "blocks": 2, "block": block, "tie": False} | more), 50)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return model.eval().requires_grad_(False)


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_equals_the_operators(name: str) -> None:
    model = model_of(ATTENTIONS[name])
    assert refusal(model) is None
    decoder, state = FusedDecoder(model), started(model)
    ours = theirs = state
    for step in range(30):
        tokens = tokens_of(step, 3)
        hidden, ours, _ = decoder.hidden(tokens, ours)
        expected, theirs, _ = model.hidden(tokens, theirs)
        close(hidden, expected)
    assert torch.equal(ours.position, theirs.position)
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        assert torch.equal(mine[0].filled, other[0].filled) and mine[1] == other[1] == ()
        close(mine[0].keys, other[0].keys)
        close(mine[0].values, other[0].values)


@pytest.mark.parametrize(
    "more",
    [
        *({"norm_eps": 0.1}, {"embed_norm": False}, {"tie": True}),
        *({"norm": "layer"}, {"norm": "layer_no_bias"}, {"norm": "layer_no_affine"}),
        *({"mlp": {"activation": name}} for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2")),
        *({"mlp": {"activation": name, "gated": False}} for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2")),
        *({"mlp": {"bias": True}}, {"mlp": {"gate_scale": 0.7}}, {"mlp": {"gate_scale": 0.7, "activation": "gelu"}}),
    ],
)
def test_forms_of_the_rest(more: dict[str, Any]) -> None:
    model = model_of({"heads": 4}, more.get("mlp"), **{key: value for key, value in more.items() if key != "mlp"})
    assert refusal(model) is None
    state = started(model)
    hidden, *_ = FusedDecoder(model).hidden(tokens_of(0, 3), state)
    close(hidden, model.hidden(tokens_of(0, 3), state)[0])


def model_of_residuals(name: str, norm: str) -> LanguageModel:
    kinds = [{"type": "attention", "heads": 4}, {"type": "mlp", "hidden": 44}, {"type": "mlp", "hidden": 20}]
    block = [{**kind, "residual": each} for kind, each in zip(kinds, RESIDUALS[name], strict=False)]
    return model_of({}, block=block, norm=norm)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("name", RESIDUALS)
def test_residuals(name: str, norm: str) -> None:
    model = model_of_residuals(name, norm)
    assert refusal(model) is None
    decoder, state = FusedDecoder(model), started(model)
    ours = theirs = state
    for step in range(4):
        hidden, ours, _ = decoder.hidden(tokens_of(step, 3), ours)
        expected, theirs, _ = model.hidden(tokens_of(step, 3), theirs)
        close(hidden, expected)


def test_a_row_that_is_not_finite_harms_no_other() -> None:
    model = model_of({"heads": 4, "gate": True, "clip": 0.4, "logit_cap": 5.0}, {"activation": "gelu_tanh"})
    decoder, state = FusedDecoder(model), started(model)
    expected = decoder.hidden(tokens_of(0, 3), state)[0]
    broken = states.map_leaves(torch.clone, state)
    broken.blocks[0][0].keys[1] = torch.nan
    hidden = decoder.hidden(tokens_of(0, 3), broken)[0]
    assert torch.equal(hidden[[0, 2]], expected[[0, 2]]) and hidden[1].isnan().all()


def test_from_a_state_without_tokens() -> None:
    model = model_of({"heads": 4})
    hidden, after, _ = FusedDecoder(model).hidden(tokens_of(0, 2), model.init_state(2))
    expected, theirs, _ = model.hidden(tokens_of(0, 2))
    close(hidden, expected)
    close(after.blocks[1][0].keys, theirs.blocks[1][0].keys)


@pytest.mark.parametrize("name", ["grouped", "odd", "window"])
def test_a_row_is_the_same_in_any_company(name: str) -> None:
    model = model_of(ATTENTIONS[name])
    decoder, lengths = FusedDecoder(model), (5, 12, 1, 3, 8, 20, 2)
    together = started(model, lengths)
    alone = [_row(together, row, length) for row, length in enumerate(lengths)]
    for step in range(12):
        tokens = tokens_of(step, len(lengths))
        hidden, together, _ = decoder.hidden(tokens, together)
        for row in range(len(lengths)):
            single, alone[row], _ = decoder.hidden(tokens[row : row + 1], alone[row])
            assert torch.equal(single[0], hidden[row])


def _row(state: ModelState, row: int, length: int) -> ModelState:
    """A row's state with windows no longer than it needs."""
    blocks = [
        [
            type(each)(
                each.keys[row : row + 1, -length:], each.values[row : row + 1, -length:], each.filled[row : row + 1]
            ),
            (),
        ]
        for each, _ in state.blocks
    ]
    return ModelState(state.position[row : row + 1], blocks)


def test_threads_change_nothing() -> None:
    model = model_of({"heads": 6, "kv_heads": 3}, {"hidden": 200}, width=96)
    decoder, state = FusedDecoder(model), started(model, tuple(range(1, 41)))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(decoder.hidden(tokens_of(0, 40), state)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_state_is_a_value() -> None:
    model = model_of({"heads": 4})
    decoder = FusedDecoder(model)
    _, state, _ = decoder.hidden(tokens_of(0, 3), started(model))
    before = state.blocks[0][0].keys.clone()
    first, one, _ = decoder.hidden(tokens_of(1, 3), state)
    other, two, _ = decoder.hidden(tokens_of(2, 3), state)
    again, *_ = decoder.hidden(tokens_of(1, 3), state)
    assert torch.equal(state.blocks[0][0].keys, before) and torch.equal(first, again) and not torch.equal(first, other)
    for after, tokens in ((one, 1), (two, 2)):
        close(after.blocks[1][0].keys, model.hidden(tokens_of(tokens, 3), state)[1].blocks[1][0].keys)


def test_a_row_with_nan_harms_no_other() -> None:
    model = model_of({"heads": 4})
    decoder, state = FusedDecoder(model), started(model)
    expected, *_ = decoder.hidden(tokens_of(0, 3), state)
    state.blocks[0][0].keys[1, -1, 0, 0] = float("nan")
    hidden, *_ = decoder.hidden(tokens_of(0, 3), state)
    assert hidden[1].isnan().any() and torch.equal(hidden[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("filled", [1e30, 1e6, 40.0, 0.0, -5.0, float("nan")])
def test_a_count_that_no_window_has_reads_nothing_outside(filled: float) -> None:
    """A damaged session may have one; what follows its window in memory is somebody else's."""
    model = model_of({"heads": 4})
    state = started(model)
    expected, *_ = FusedDecoder(model).hidden(tokens_of(0, 3), state)
    first = state.blocks[0][0].keys[1].clone()
    for attention, _ in state.blocks:
        attention.filled[1] = filled
    hidden, *_ = FusedDecoder(model).hidden(tokens_of(0, 3), state)
    assert torch.equal(hidden[[0, 2]], expected[[0, 2]]) and hidden.isfinite().all()
    assert torch.equal(hidden[1], expected[1]) == (filled > 12)
    assert torch.equal(state.blocks[0][0].keys[1], first)


def test_passes_of_several_threads_do_not_meet() -> None:
    model = model_of({"heads": 4})
    decoder, lengths = FusedDecoder(model), [(5, 12, 1), (40,), (3, 4, 5, 6)]

    def decoded(lengths: tuple[int, ...]) -> list[torch.Tensor]:
        state, results = started(model, lengths), []
        for step in range(200):
            hidden, state, _ = decoder.hidden(tokens_of(step, len(lengths)), state)
            results.append(hidden)
        return results

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(decoded, lengths))
    for ours, each in zip(together, lengths, strict=True):
        assert torch.equal(torch.stack(ours), torch.stack(decoded(each)))


def test_adapters_of_another_number_of_rows_are_refused() -> None:
    model = model_of({"heads": 4})
    with use_adapters(AdapterBatch((NONE, NONE))), pytest.raises(ValueError, match="2 rows with adapters, and 3"):
        FusedDecoder(model).hidden(tokens_of(0, 3), started(model))


def test_tokens_that_leave_out_blocks_are_not_fused() -> None:
    assert "leave out" in (refusal(model_of({"heads": 4}, depth={"min": 1, "target": 0.5})) or "")


def test_other_learners_and_precisions_are_not_fused() -> None:
    block = [{"type": "hyena", "length": 8}]
    other = LanguageModel(ModelSpec.model_validate({"width": 24, "blocks": 1, "block": block}), 50)
    assert refusal(other) == "a block has a hyena"
    assert "float32" in (refusal(model_of({"heads": 4}).double()) or "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    block = [{"type": "attention", "heads": 4}, {"type": "mlp", "hidden": 64}]
    recipe = Recipe.model_validate({"model": {"width": 64, "blocks": 2, "block": block}})
    torch.manual_seed(4)
    model = LanguageModel(recipe.model, 257)

    save(
        tmp_path / "m", recipe=recipe, vocab=257, tensors=weights(model), manifest=Manifest(), tokenizer=ByteTokenizer()
    )
    return tmp_path / "m"


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "int4"])
def test_a_loaded_model_decodes_so(path: Path, format: str) -> None:
    loaded = LoadedModel.from_checkpoint(Checkpoint.open(path), "m", weights=format)
    assert loaded.fused_refusal is None
    with torch.no_grad(), loaded.activate():
        state = loaded.forward(torch.tensor([[1, 2, 3, 4]]), None).state
        output = loaded.forward(torch.tensor([[5]]), state)
        expected = loaded.model.hidden(torch.tensor([[5]]), state)[0]
    tolerance = 2e-2 if format.startswith("int") else 1e-5  # a rounding of activations to 8 bits may go the other way
    assert (output.hidden - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
def test_each_row_has_its_own_adapter(path: Path, format: str, compact: bool) -> None:
    loaded = LoadedModel.from_checkpoint(Checkpoint.open(path), "m", weights=format)
    adapters = [None, adapter_of(loaded.model, 3, 0.5), adapter_of(loaded.model, 9, 2.0)]
    if compact:
        adapters = [None if each is None else loaded.compact_adapter(each) for each in adapters]
    rows = [adapters[i] for i in (0, 2, 1, 0, 1)]
    loaded.adapters = {"a": adapters[1], "b": adapters[2]}  # type: ignore[dict-item]
    tokens, following = torch.randint(257, (5, 6)), torch.randint(257, (5, 1))
    with torch.no_grad(), loaded.activate():
        before = loaded.forward(following[:1], loaded.forward(tokens[:1], None).state).hidden
        with use_adapters(loaded.adapter_batch(rows)):
            state = loaded.forward(tokens, None).state
            assert loaded.fused_refusal is None
            together = loaded.forward(following, state)
            expected = loaded.model.hidden(following, state)[0]
        for row, adapter in enumerate(rows):
            own = states.take(state, torch.tensor([row]))
            with use_adapters(loaded.adapter_batch([adapter])):
                assert torch.equal(loaded.forward(following[row : row + 1], own).hidden[0], together.hidden[row])
        assert torch.equal(loaded.forward(following[:1], states.take(state, torch.tensor([0]))).hidden, before)
        tolerance = 2e-2 if format.startswith("int") else 1e-5
        assert (together.hidden - expected).norm() <= tolerance * expected.norm()
        loaded.adapters.clear()
        loaded.detach_unused([])
        assert torch.equal(loaded.forward(following[:1], states.take(state, torch.tensor([0]))).hidden, before)


def test_the_number_of_threads_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path))
    model, before, passes = model_of({"heads": 4}), torch.get_num_threads(), list[torch.Tensor]()
    tokens = tokens_of(5, 3)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            decoder, state, outputs = FusedDecoder(model), started(model), list[torch.Tensor]()
            for _ in range(3 * ROUNDS * PASSES):
                hidden, state, _ = decoder.hidden(tokens, state)
                outputs.append(hidden)
                assert torch.get_num_threads() == threads
            passes.append(torch.stack(outputs))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*passes)
