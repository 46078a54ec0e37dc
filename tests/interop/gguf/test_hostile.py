"""GGUF files whose header is in order and whose values are not: one line each, whatever asks for the model."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.interop.gguf.families import ARCHITECTURES
from synthe_core.interop.gguf.file import GgufFile
from synthe_core.interop.gguf.writer import PlannedTensor, write_gguf
from synthe_core.interop.importer import import_gguf
from synthe_core.storage.checkpoint import Checkpoint
from tests.evaluation.models import saved
from tests.interop.gguf.test_file import damaged

Values = dict[str, Any]
SHAPES = {
    "token_embd.weight": (16, 8),
    "output_norm.weight": (8,),
    "blk.0.attn_norm.weight": (8,),
    "blk.0.ffn_norm.weight": (8,),
    "blk.0.attn_q.weight": (8, 8),
    "blk.0.attn_k.weight": (8, 8),
    "blk.0.attn_v.weight": (8, 8),
    "blk.0.attn_output.weight": (8, 8),
    "blk.0.ffn_gate.weight": (12, 8),
    "blk.0.ffn_up.weight": (12, 8),
    "blk.0.ffn_down.weight": (8, 12),
}
TOKENS = [*"abcdefghijklmn", "ab", "<|im_end|>"]
MODEL: Values = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 12,
    "llama.attention.head_count": 2,
    "llama.attention.key_length": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.context_length": 64,
}
BPE: Values = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * 15 + [3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 15,
}
PIECES: Values = BPE | {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0] * 16}


def imported(folder: Path, values: Values, shapes: dict[str, tuple[int, ...]] = SHAPES) -> None:
    planned = {name: PlannedTensor(shape, 0, lambda shape=shape: torch.ones(shape)) for name, shape in shapes.items()}  # type: ignore[misc]
    write_gguf(folder / "a.gguf", values, planned)
    for _ in import_gguf(folder / "a.gguf", out=folder / "out"):
        pass


@pytest.mark.parametrize("name", ["stablelm", "starcoder2", "a\nb", "x" * 5000])
def test_an_architecture_that_is_not_read_says_what_to_give(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="which is not read") as caught:
        imported(tmp_path, MODEL | {"general.architecture": name})
    assert "\n" not in caught.value.message and len(caught.value.message) < 200 + len(str(tmp_path))
    assert caught.value.hint is not None and "folder that it was made from" in caught.value.hint


@pytest.mark.parametrize("tokenizer", [{}, BPE, PIECES], ids=["none", "bpe", "pieces"])
def test_the_file_that_the_faults_are_made_in_is_whole(tmp_path: Path, tokenizer: Values) -> None:
    imported(tmp_path, MODEL | tokenizer)
    assert (tmp_path / "out" / "config.json").exists()


WRONG: list[Any] = ["x\n", ["a b", "c"], [1, 2], [0.5], [float("nan")] * 16, 2**32 - 2, 0.5]
KEYS = {
    "llama.attention.sliding_window": [0.5, ["a"], [1, 2], "x"],
    "llama.expert_count": [4, [1, 2], "x"],
    "llama.rope.scaling.type": [[1, 2], "x\n", 3],
    "llama.attention.head_count": [*WRONG, 0, 3, [1, 2]],
    "llama.attention.key_length": [*WRONG, 0],
    "llama.embedding_length": [*WRONG, 0],
    "llama.block_count": [*WRONG, 0],
    "tokenizer.ggml.tokens": [*WRONG, [*TOKENS[:-1], "a"], [*TOKENS[:-1], "a" * 2000], [*TOKENS, "zz"]],
    "tokenizer.ggml.token_type": [*WRONG, [1]],
    "tokenizer.ggml.merges": [*WRONG[:1], *WRONG[2:], ["a"], ["a zz"], ["a b c"]],
    "tokenizer.ggml.eos_token_id": WRONG,
    "tokenizer.ggml.bos_token_id": [16, *WRONG],
    "tokenizer.ggml.add_bos_token": WRONG,
    "tokenizer.chat_template": [each for each in WRONG if not isinstance(each, str)],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in KEYS.items() for value in values])
def test_a_value_of_a_wrong_kind_is_one_line(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        imported(tmp_path, MODEL | BPE | {key: value})
    assert "\n" not in str(caught.value).replace(str(value), "") and len(str(caught.value)) < 400 + len(str(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["scores", "unknown_token_id", "add_space_prefix"])
@pytest.mark.parametrize("value", [value for value in WRONG if value != 2**32 - 2], ids=str)
def test_values_of_pieces(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(InputError):
        imported(tmp_path, MODEL | PIECES | {f"tokenizer.ggml.{key}": value})


def test_minus_one_is_no_token(tmp_path: Path) -> None:
    imported(tmp_path, MODEL | BPE | {"tokenizer.ggml.padding_token_id": 2**32 - 1})


Change = Callable[[tuple[int, ...]], tuple[int, ...]]
CHANGES: dict[str, Change] = {
    "a row more": lambda shape: (shape[0] + 1, *shape[1:]),
    "half": lambda shape: (shape[0] // 2, *shape[1:]),
    "two dimensions more": lambda shape: (1, 1, *shape) if len(shape) == 2 else (1, 1, 1, *shape),
    "one dimension less": lambda shape: (shape[0] * shape[1],) if len(shape) == 2 else (1, *shape),
}


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "token_embd.weight"])
@pytest.mark.parametrize("change", CHANGES)
def test_tensors_of_another_shape(tmp_path: Path, name: str, change: str) -> None:
    with pytest.raises(InputError):
        imported(tmp_path, MODEL | BPE, SHAPES | {name: CHANGES[change](SHAPES[name])})


@pytest.mark.parametrize("name", SHAPES)
def test_a_tensor_that_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        imported(tmp_path, MODEL | BPE, {other: shape for other, shape in SHAPES.items() if other != name})


def opened(path: Path) -> None:
    """Everything of the file that a verb asks for."""
    checkpoint = Checkpoint.open(path)
    for name in checkpoint.tensors:
        checkpoint.tensors.shape(name)
    if "tokenizer.json" in checkpoint.manifest.files:
        checkpoint.tokenizer()


@pytest.mark.parametrize("count", [8, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_damage_in_the_header_of_every_architecture(tmp_path: Path, architecture: str, count: int) -> None:
    pytest.importorskip("transformers")
    path = tmp_path / "model.gguf"
    written(architecture, path)
    whole, rng, refused = path.read_bytes(), random.Random(architecture), 0
    end = min(info.start for info in GgufFile(path).tensors.values())
    for _ in range(count):
        path.write_bytes(damaged(whole[:end], rng) + whole[end:])
        try:
            opened(path)
        except InputError as error:
            assert "\n" not in error.message
            refused += 1
    assert refused >= count // 4


def written(architecture: str, path: Path) -> None:
    """A small model of an architecture, with a tokenizer where the writer of its tests can add one."""
    from tests.interop.gguf import rwkv7, test_families, test_hybrid_families, test_rwkv7

    if architecture == "rwkv7":
        rwkv7.write(path, rwkv7.tensors(**test_rwkv7.SIZES), 8, **test_rwkv7.TOKENS)
    elif (case := (test_families.CASES | test_hybrid_families.CASES).get(architecture)) is not None:
        case(path)
    else:
        from tests.interop.gguf import test_exporter

        _, block, model = test_exporter.MODELS[architecture]
        source = saved(path.parent / "ours", block, **model)
        test_exporter.exported(source, path, quantize="f32")
