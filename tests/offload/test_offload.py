"""Models within a given memory: every kind of file, the fused pass, adapters, the order of layers, damage, plans."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.lora_linear import linear_maps, matrix_shape
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError, WorkError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.offline import generate
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.inference.speculation.settings import SpeculationSettings, speculate
from synthe_core.interop.gguf.exporter import export_gguf
from synthe_core.interop.huggingface.exporter import export_hf
from synthe_core.layers.quantized import quantized_matrix
from synthe_core.model.language_model import LanguageModel
from synthe_core.offload.plan import MemoryNeeds, choose_layout, plan_memory
from synthe_core.offload.stored_matrix import RowReader, StoredMatrix
from synthe_core.ops.packed_linear import unavailable
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.quantization.sliced import SlicedMatrix
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.tensor_file import Extent
from tests.inference.conftest import written
from tests.offload.conftest import Open

BLOCK: list[Any] = [
    {"type": "attention", "heads": 4, "kv_heads": 2, "qk_norm": False},
    {"type": "mlp", "hidden": 128},
]
MEMORY: list[Any] = [{"type": "momentum"}, {"type": "delta", "heads": 4}, {"type": "kalman"}, *BLOCK]
PROMPTS = [b"Once upon a time there was", b"x", b"a longer one than the others have, by far"]
no_integers = pytest.mark.skipif(unavailable("cpu") is not None, reason=str(unavailable("cpu")))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("offload") / "model", BLOCK, width=64, embed_norm=False)


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("offload") / "recurrent", MEMORY, width=64)


def loaded(model: LanguageModel) -> LoadedModel:
    return LoadedModel(
        "model", model.eval().requires_grad_(False), ByteTokenizer(), context=ExecutionContext(batch_invariant=True)
    )


def tokens(model: LoadedModel, prompts: list[bytes] = PROMPTS, adapter: Adapter | None = None) -> list[list[int]]:
    """What each prompt is continued with, all in one batch."""
    if adapter is not None:
        model.adapters["adapter"] = adapter
    engine = Engine([model], max_num_seqs=len(prompts), cache_bytes=0)
    name = "model" if adapter is None else "model:adapter"
    sampling = SamplingParams(temperature=0)
    sequences = [
        engine.add_request(Request(name, tuple(prompt), 10, sampling, ignore_eos=True), lambda output: False)
        for prompt in prompts
    ]
    while engine.has_unfinished:
        engine.step()
    if errors := [each.error for each in sequences if each.error is not None]:
        raise errors[0]
    return [each.output_token_ids for each in sequences]


def make(kind: str, path: Path, folder: Path) -> Path:
    if kind == "synapse":
        list(pack(path, folder / "model.synapse", PackOptions()))
        return folder / "model.synapse"
    if kind == "gguf":
        list(export_gguf(path, out=folder / "model.gguf", quantize="f16"))
        return folder / "model.gguf"
    if kind == "huggingface":
        list(export_hf(path, out=folder / "hf"))
        return folder / "hf"
    return path


@pytest.mark.parametrize("kind", ["checkpoint", "synapse", "gguf", "huggingface"])
def test_every_kind_of_file_gives_the_same_tokens(kind: str, path: Path, tmp_path: Path, opened: Open) -> None:
    file = make(kind, path, tmp_path)
    whole, read = loaded(Checkpoint.open(file).model()), loaded(opened(file))
    assert read.memory_plan is not None and read.memory_plan.streamed > 0
    assert read.fused_refusal == whole.fused_refusal
    assert tokens(read) == tokens(whole)
    assert (read.model.offload.converted is None) == (kind != "gguf")  # whose queries and keys have another order


@no_integers
@pytest.mark.parametrize("format", ["int4", "int8", "bfloat16"])
@pytest.mark.parametrize("which", ["path", "recurrent"])
def test_packed_matrices_are_converted_once(
    which: str, format: str, request: pytest.FixtureRequest, opened: Open
) -> None:
    file = request.getfixturevalue(which)
    expected = tokens(loaded(Checkpoint.open(file).model(format=format)))
    first = opened(file, format)
    assert tokens(loaded(first)) == expected
    made = first.offload.converted
    before = made.stat().st_mtime_ns
    assert tokens(loaded(opened(file, format))) == expected
    assert made.stat().st_mtime_ns == before
    made.write_bytes(made.read_bytes()[:-100])  # a damaged one is made again
    assert tokens(loaded(opened(file, format))) == expected


@no_integers
@pytest.mark.parametrize("format", [None, "int4", "int8", "bfloat16"])
@pytest.mark.parametrize("tie", [False, True])
def test_embedding_and_head_may_be_on_disk(tie: bool, format: str | None, tmp_path: Path, opened: Open) -> None:
    file = written(tmp_path / "m", [*BLOCK, {"type": "momentum"}], width=40, embed_norm=False, tie=tie)
    whole, read = Checkpoint.open(file).model(format=format).eval(), opened(file, format, layout=-1)
    for each in (read.embedding, read.head):
        assert isinstance(quantized_matrix(each), SlicedMatrix)
    assert (read.embedding.matrix is read.head.matrix) == tie
    assert read.parameter_count() == whole.parameter_count()
    opened_whole = opened(file, format, layout=0)
    assert read.offload.plan.fixed < opened_whole.offload.plan.fixed
    assert tokens(loaded(read)) == tokens(loaded(whole))
    text = torch.randint(257, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = torch.randn(2, 9, 40)
        for part in (None, slice(3, 200), slice(130, 131)):
            close(read.head.project(hidden, part), whole.head.project(hidden, part))
        (ours, each, top), (theirs, every, other) = (m.head.cross_entropy(hidden, text, True) for m in (read, whole))
        assert top is not None and other is not None
        pairs = (ours, theirs), (each, every), (top.max_logprob, other.max_logprob)
        for mine, its in pairs:
            close(mine, its)
    with torch.inference_mode():
        close(read.head.weight, whole.head.weight)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_single_rows_are_read(path: Path, opened: Open) -> None:
    whole, read = Checkpoint.open(path).model(), opened(path, layout=1)
    assert isinstance(read.embedding.matrix, SlicedMatrix) and not isinstance(quantized_matrix(read.head), SlicedMatrix)
    index = torch.tensor([[0, 256, 3, 3], [255, 8, 7, 16]]).repeat(1, 100)
    assert torch.equal(read.embedding(index), whole.embedding(index))
    with pytest.raises(InputError, match="NaN"):
        RowReader(stored_nan(path.parent / "rows"), "m")(torch.tensor([2]))


def stored_nan(file: Path) -> StoredMatrix:
    torch.tensor([[1.0, 2], [3, 4], [5, float("nan")]]).numpy().tofile(file)
    return StoredMatrix("head.weight", (3, 2), [Extent(file, 0, 24, torch.float32)], None)


def test_the_layout_is_the_first_that_fits() -> None:
    whole, rows, slices = (MemoryNeeds(1000, fixed, layers, lambda n: 10, 2, 300) for fixed, layers in (
        (900, [40, 40]), (500, [40, 40]), (100, [40, 40, 30, 30])
    ))  # fmt: skip
    layouts = [whole, rows, slices]
    assert choose_layout(1 << 40, layouts)[0] == 0
    assert choose_layout(rows.smallest, layouts)[0] == 1
    assert choose_layout(rows.smallest - 1, layouts)[0] == 2
    with pytest.raises(InputError, match="needs at least"):
        choose_layout(slices.smallest - 1, layouts)


@no_integers
def test_matrices_of_a_file_are_as_they_are_stored(path: Path, tmp_path: Path, opened: Open) -> None:
    list(pack(path, tmp_path / "int4.synapse", PackOptions(quantize="int4")))
    whole = loaded(Checkpoint.open(tmp_path / "int4.synapse").model(format="as_stored"))
    assert tokens(loaded(opened(tmp_path / "int4.synapse", "as_stored"))) == tokens(whole)
    with pytest.raises(InputError, match="float32"):
        opened(path, "as_stored")


@pytest.mark.parametrize("extra", [0, 100_000, 300_000, 1 << 30])
def test_what_there_is_room_for_stays(extra: int, recurrent: Path, opened: Open) -> None:
    whole, read = loaded(Checkpoint.open(recurrent).model()), loaded(opened(recurrent, extra=extra))
    plan = read.memory_plan
    assert plan is not None and (plan.streamed == 0) == (extra == 1 << 30)
    assert tokens(read) == tokens(whole)


@pytest.mark.parametrize("which", ["path", "recurrent"])
def test_adapters_are_added_to_what_is_read(which: str, request: pytest.FixtureRequest, opened: Open) -> None:
    file = request.getfixturevalue(which)
    whole, read = loaded(Checkpoint.open(file).model()), loaded(opened(file))
    generator = torch.Generator().manual_seed(3)
    maps = {}
    for name, each in linear_maps(whole.model).items():
        rows, columns = matrix_shape(each)
        factors = torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator)
        maps[name] = LowRank(*factors, 0.05)
    adapter = Adapter(maps)
    assert tokens(read, adapter=adapter) == tokens(whole, adapter=adapter) != tokens(whole)


@pytest.mark.parametrize("how", ["ngram", "early-exit"])
def test_drafts_are_verified_in_one_reading(how: str, path: Path, opened: Open) -> None:
    models = [loaded(Checkpoint.open(path).model()), loaded(opened(path))]
    for each in models:
        speculate(each, SpeculationSettings.parse(how), lambda name: models[0])
    repeated = [b"one two three one two three one two", b"abcabcabcabc"]
    assert tokens(models[1], repeated) == tokens(models[0], repeated)


def test_layers_may_come_in_any_order(path: Path, opened: Open) -> None:
    whole, read = Checkpoint.open(path).model().eval(), opened(path)
    for index in (3, 0, 0, 2, 1, 3, 3, 2):
        parts = zip(linear_maps(read.learners[index]).items(), linear_maps(whole.learners[index]).values(), strict=True)
        with read.offload.holding(index):
            for (name, mine), theirs in parts:
                assert torch.equal(mine.weight, theirs.weight), (index, name)


@pytest.mark.parametrize("change", ["shorter", "changed"])
def test_a_file_that_changes_is_an_error(change: str, path: Path, tmp_path: Path, opened: Open) -> None:
    list(pack(path, tmp_path / "model.synapse", PackOptions()))
    file = tmp_path / "model.synapse"
    model = loaded(opened(file))
    expected = tokens(model)
    content = file.read_bytes()
    with file.open("r+b") as there:
        if change == "shorter":
            there.truncate(len(content) // 8)
        else:
            there.write(content)
    os.utime(file, ns=(0, 0))
    with pytest.raises(WorkError, match="in use"):
        for _ in range(2):
            tokens(model)
    assert len(expected) == len(PROMPTS)


def test_weights_that_are_no_numbers_are_refused(path: Path, opened: Open) -> None:
    checkpoint = Checkpoint.open(path)
    broken = dict(checkpoint.tensors)
    name = "blocks.1.learners.1.out.weight"
    broken[name] = broken[name].clone().fill_(float("nan"))
    from synthe_core.storage.checkpoint import save
    from synthe_core.storage.manifest import Manifest

    other = path.parent / "nan"
    save(other, recipe=checkpoint.recipe, vocab=257, tensors=broken, manifest=Manifest(), tokenizer=ByteTokenizer())
    with pytest.raises(InputError, match="NaN"):
        tokens(loaded(opened(other)))


def needs(layers: list[int]) -> MemoryNeeds:
    return MemoryNeeds(1000, 500, layers, lambda length: 10, 2, 300)


def test_a_plan_fits_and_says_what_is_too_little() -> None:
    layers = [40, 10, 30, 20, 50, 10] * 3
    least = needs(layers).smallest
    previous = None
    for memory in (least, least + 100, least + 300, least + 1000):
        plan = plan_memory(memory, needs(layers))
        used = plan.process + plan.fixed + plan.resident_bytes + sum(plan.slots) + 3 * plan.states + plan.workspace
        assert used <= memory and plan.resident_bytes + plan.streamed == sum(layers)
        assert previous is None or plan.streamed <= previous
        previous = plan.streamed
    assert previous == 0
    with pytest.raises(InputError, match="needs at least"):
        plan_memory(least - 1, needs(layers))


def test_states_of_more_texts_than_fit_are_not_saved(recurrent: Path, opened: Open) -> None:
    model = loaded(opened(recurrent))
    plan = model.memory_plan
    assert plan is not None
    count = plan.states // model.state_bytes(1) + 1
    with pytest.raises(InputError, match=f"states of {count} texts"):
        list(generate(model, ["a"] * count, 1))
    deltas = list(generate(model, ["a"] * count, 3, sampling=SamplingParams(temperature=0), keep_session=False))
    assert {each.row for each in deltas} <= set(range(count))
