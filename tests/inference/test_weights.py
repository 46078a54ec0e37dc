"""The format of a model's matrices: what is chosen, what it computes, and that rows stay independent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.lora_linear import linear_maps, matrix_shape
from synthe_core.errors import InputError
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Output, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.inference.weights import WEIGHTS, choose_weights
from synthe_core.layers.quantized import QuantizedLinear
from synthe_core.model.head import QuantizedHead
from synthe_core.ops.packed_linear import unavailable
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.quantization.matrix import FloatMatrix
from synthe_core.quantization.packed import PackedMatrix
from synthe_core.quantization.quantize import quantize
from synthe_core.storage.checkpoint import Checkpoint, save
from synthe_core.storage.manifest import Manifest
from tests.inference.conftest import adapter_of, written

pytestmark = pytest.mark.skipif(unavailable("cpu") is not None, reason=str(unavailable("cpu")))

BLOCK: list[Any] = [
    {"type": "attention", "heads": 4, "kv_heads": 2, "window": 24},
    {"type": "delta", "heads": 4, "key_size": 16},
    {"type": "mlp", "hidden": 128},
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("weights") / "model", BLOCK, width=64)


@pytest.fixture(scope="module", params=["int8", "int4"])
def file(path: Path, request: pytest.FixtureRequest) -> Path:
    out = path.parent / f"{request.param}.synapse"
    list(pack(path, out, PackOptions(quantize=request.param)))
    return out


def load(path: Path, weights: str) -> LoadedModel:
    return LoadedModel.from_checkpoint(Checkpoint.open(path), "model", weights=weights)


def tokens(model: LoadedModel, prompts: list[bytes], count: int = 12) -> list[list[int]]:
    """What each prompt is continued with, all in one batch."""
    engine = Engine([model], max_num_seqs=len(prompts), cache_bytes=0)
    texts: list[list[int]] = [[] for _ in prompts]

    def receiver(text: list[int]) -> Any:
        def receive(output: Output) -> bool:
            if isinstance(output, TokenOutput):
                text.append(output.token_id)
            return False

        return receive

    sampling = SamplingParams(temperature=0)
    sequences = [
        engine.add_request(Request("model", tuple(prompt), count, sampling, ignore_eos=True), receiver(text))
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    while engine.has_unfinished:
        engine.step()
    assert all(each.error is None for each in sequences)
    return texts


def test_auto_is_as_the_file_has_them(path: Path, file: Path) -> None:
    assert choose_weights("auto", Checkpoint.open(path), "cpu").format is None
    choice = choose_weights("auto", Checkpoint.open(file), "cpu")
    assert choice.format == "as_stored" and "file" in choice.reason
    assert choose_weights("float32", Checkpoint.open(file), "cpu").format is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_auto_leaves_a_file_of_16_bits_as_it_is(path: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    opened = Checkpoint.open(path)
    tensors = {name: opened.tensors[name].to(dtype) for name in opened.tensors}
    recipe, tokenizer = opened.recipe, opened.tokenizer()
    save(tmp_path / "m", recipe=recipe, vocab=257, tensors=tensors, manifest=Manifest(), tokenizer=tokenizer)
    choice = choose_weights("auto", Checkpoint.open(tmp_path / "m"), "cpu")
    assert choice.format == "as_stored" and "file" in choice.reason
    exact, model = load(tmp_path / "m", "float32"), load(tmp_path / "m", "auto")
    matrices = [module for module in model.model.modules() if isinstance(module, FloatMatrix)]
    assert len(matrices) >= 8 and {each.values.dtype for each in matrices} == {dtype}
    assert str(dtype).removeprefix("torch.") in model.weights_summary and model.fused_refusal is None
    following = torch.tensor([[5]])
    with torch.no_grad(), model.activate(), exact.context.activate():
        state = exact.forward(torch.tensor([[1, 2, 3, 4]]), None).state
        expected, ours = (each.forward(following, state).hidden for each in (exact, model))
    assert torch.equal(ours, expected)


def test_rows_are_independent_in_16_bits(path: Path) -> None:
    model = load(path, "bfloat16")
    prompts = [b"Once", b"a longer prompt than the others have", b"12345", b"x", b"Once upon"]
    together = tokens(model, prompts)
    assert model.batch_invariant and "bfloat16" in model.weights_summary
    assert [tokens(model, [prompt])[0] for prompt in prompts] == together


def test_an_adapter_is_in_bfloat16_beside_weights_that_are_not_in_float32(path: Path) -> None:
    for weights, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.bfloat16)):
        model = load(path, weights)
        adapter = model.compact_adapter(adapter_of(model.model, 3, 0.5))
        assert {each.dtype for each in adapter.tensors.values()} == {dtype}


def test_matrices_have_the_numbers_of_the_file(file: Path) -> None:
    exact, model = load(file, "float32"), load(file, "auto")
    matrices = [module for module in model.model.modules() if isinstance(module, PackedMatrix)]
    assert model.weights == "as_stored" and len(matrices) >= 8
    assert isinstance(model.model.head, QuantizedHead)
    for name, module in model.model.named_modules():
        if isinstance(module, QuantizedLinear):
            assert torch.equal(module.weight, exact.model.get_submodule(name).weight), name  # type: ignore[arg-type]
    assert exact.weights_summary == "" and matrices[0].format in model.weights_summary


@pytest.mark.parametrize("weights", [each for each in WEIGHTS if each not in ("auto", "float32", "as_stored")])
def test_a_model_of_floats_is_quantised_when_it_is_loaded(path: Path, weights: str) -> None:
    exact, model = load(path, "float32"), load(path, weights)
    assert model.weights == weights and model.parameter_count() == exact.parameter_count()
    first = next(name for name, module in exact.model.named_modules() if isinstance(module, nn.Linear))
    made, given = (each.model.get_submodule(first).weight for each in (model, exact))
    assert isinstance(given, Tensor) and torch.equal(made, quantize(given, weights).dequantize())  # type: ignore[arg-type]
    assert len(set(tokens(model, [b"Once upon a time"])[0])) > 1


def test_rows_are_independent(file: Path) -> None:
    model = load(file, "auto")
    prompts = [b"Once", b"a longer prompt than the others have", b"12345", b"x", b"Once upon"]
    together = tokens(model, prompts)
    assert model.batch_invariant
    assert [tokens(model, [prompt])[0] for prompt in prompts] == together


def test_pieces_are_the_whole(file: Path) -> None:
    """To the bit where a text may be cut; elsewhere the last bit may decide how a number is rounded to eight."""
    model = load(file, "auto")
    assert model.alignment(256) == 16
    prompt = torch.tensor([list(b"It was a dark and stormy night, and the rain fell in torrents, except when not")])
    with torch.no_grad(), model.activate():
        whole, _ = model.model(prompt)
        state, parts = None, []
        for part in prompt.split([16, 32, 16, prompt.shape[1] - 64], 1):
            logits, state = model.model(part, state)
            parts.append(logits)
    assert torch.equal(torch.cat(parts, 1), whole)


def test_states_of_another_format_are_of_another_model(path: Path) -> None:
    prints = [load(path, weights).fingerprints(None) for weights in ("float32", "int8", "int4")]
    assert len({each.weights for each in prints}) == 3 and len({each.shape for each in prints}) == 3


def test_a_session_goes_on_with_the_same_numbers_in_another_format(file: Path) -> None:
    exact, model = load(file, "float32").fingerprints(None), load(file, "as_stored").fingerprints(None)
    assert exact.shape == model.shape and exact.weights != model.weights


def test_a_session_with_an_adapter_is_of_that_adapter_in_any_format(file: Path) -> None:
    shapes: list[list[str]] = []
    for weights in ("float32", "as_stored"):
        model = load(file, weights)
        maps = [name for name, each in model.model.named_modules() if isinstance(each, QuantizedLinear | nn.Linear)]
        name = next(each for each in maps if each.startswith("blocks.0."))
        rows, columns = matrix_shape(linear_maps(model.model)[name])
        a, b = torch.ones(2, columns), torch.ones(rows, 2)
        model.adapters = {str(scale): Adapter({name: LowRank(a, b, scale)}) for scale in (0.5, 1.5)}
        shapes.append([model.fingerprints(adapter).shape for adapter in (None, *model.adapters.values())])
    assert shapes[0] == shapes[1] and len(set(shapes[0])) == 3


def test_an_adapter_is_identified_without_dequantising(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(file, "as_stored")
    matrices = [each.matrix for each in model.model.modules() if isinstance(each, QuantizedLinear)]
    maps = {
        name: LowRank(torch.ones(2, each.in_features), torch.ones(each.out_features, 2), 1.0)
        for name, each in linear_maps(model.model).items()
    }
    plain = model.fingerprints(None)

    def refuse(matrix: object) -> torch.Tensor:
        raise AssertionError("a matrix was dequantised")

    for kind in {type(matrix) for matrix in matrices}:
        monkeypatch.setattr(kind, "dequantize", refuse)
    assert matrices and model.fingerprints(Adapter(maps)) != plain


def test_what_cannot_be_had(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    with pytest.raises(InputError, match="int5") as error:
        choose_weights("int5", checkpoint, "cpu")
    assert error.value.hint is not None and "int8" in error.value.hint
    with pytest.raises(InputError, match=r"--weights int4_asymmetric: on CUDA the formats are .*int8"):
        choose_weights("int4_asymmetric", checkpoint, "cuda")
    assert choose_weights("bfloat16", checkpoint, "cuda").format == "bfloat16"
    with pytest.raises(InputError, match="float32"):
        load(path, "as_stored")
