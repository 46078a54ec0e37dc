"""The verb `export gguf`: a checkpoint as one file that llama.cpp loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError, unknown
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.interop.gguf.architectures import ARCHITECTURES, stored_names
from synthe_core.interop.gguf.export_architectures import EXPORT_ARCHITECTURES, Transform
from synthe_core.interop.gguf.export_tokenizer import tokenizer_metadata
from synthe_core.interop.gguf.rope_divisors import rope_divisors
from synthe_core.interop.gguf.writer import PlannedTensor, write_gguf
from synthe_core.interop.huggingface.exporter import PublishedTensors, exportable
from synthe_core.quantization.ggml import BLOCK_FORMATS
from synthe_core.storage.atomic import new_file
from synthe_core.storage.checkpoint import Checkpoint

F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, BF16 = 0, 1, 2, 8, 12, 14, 30
TYPES = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": Q8_0, "q4_0": Q4_0, "q4_k_m": Q4_K}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_k_m": 15}  # general.file_type
MORE_BITS = ("attn_v", "ffn_down")  # matrices that lose most by four bits
ALWAYS_FLOAT = ("ssm_conv1d", "ssm_a", "ssm_d")


def export_gguf(source: Path, *, out: Path | None = None, quantize: str = "f16") -> Iterator[Event]:
    """Writes the checkpoint `source` as a GGUF file and yields events; the last is a Result with its path.

    out: the file; exports/NAME-TYPE.gguf by default. quantize: an entry of `TYPES`, the type of the matrices; q4_k_m is
    llama.cpp's mixture of Q4_K and Q6_K. A matrix whose rows no block divides gets Q8_0 or F16. InputError for a model
    that no architecture of the format computes.
    """
    if quantize not in TYPES:
        raise unknown("type", quantize, TYPES)
    checkpoint = Checkpoint.open(source)
    model, values = exportable(checkpoint)
    architecture = next((key for key, each in EXPORT_ARCHITECTURES.items() if each.matches(values)), None)
    if architecture is None:
        raise InputError(
            f"no GGUF architecture computes this model: {values['architectures'][0]} with its options",
            "synthe export hf writes it",
        )
    path = out or Path("exports") / f"{checkpoint.recipe.name}-{quantize}.gguf"
    if path.is_file():
        raise InputError(f"{path} exists already", "name another file with --out, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        "general.name": checkpoint.recipe.name,
        "general.file_type": FILE_TYPES[quantize],
        "general.quantization_version": 2,
    }
    known = EXPORT_ARCHITECTURES[architecture].metadata(values)
    metadata |= {f"{architecture}.{key}": value for key, value in known.items()}
    if "tokenizer.json" in checkpoint.manifest.files:
        metadata |= tokenizer_metadata(checkpoint.tokenizer(), checkpoint.vocab, source)
    else:
        yield Notice(f"{source} has no tokenizer, and so the file has none", "warning")
    if window := known.get("attention.sliding_window"):
        yield Notice(
            f"llama.cpp computes {architecture} without windows: texts beyond {window} tokens differ", "warning"
        )
    planned = _planned(architecture, values, PublishedTensors(checkpoint, model, values), quantize)
    total = sum(tensor.nbytes for tensor in planned.values())
    yield Notice(f"{architecture}: {model.parameter_count():,} parameters, {quantize}")
    yield Progress("export", 0, total, "bytes")
    with new_file(path) as target:
        write_gguf(target, metadata, planned)
    yield Progress("export", total, total, "bytes")
    yield Result({"architecture": architecture, "parameters": model.parameter_count(), "bytes": total}, path)


def _planned(
    architecture: str, values: Mapping[str, Any], tensors: PublishedTensors, quantize: str
) -> dict[str, PlannedTensor]:
    """The tensors of the file, in the order of llama.cpp's."""
    transforms = EXPORT_ARCHITECTURES[architecture].transforms(values)
    layers = values["num_hidden_layers"]
    planned: dict[str, PlannedTensor] = {}
    for name, place in stored_names(ARCHITECTURES[architecture], layers, tensors).items():
        read = partial(_read, tensors, name, transforms)
        shape = tuple(_transformed(torch.empty(tensors.shape(name), device="meta"), name, transforms).shape)
        planned[place] = PlannedTensor(shape, _type_of(place, shape, quantize, layers, values), read)
    planned |= _convolution_biases(planned)
    scaling = values.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        divisors = rope_divisors(scaling, values["head_dim"], values["rope_theta"])
        planned["rope_freqs.weight"] = PlannedTensor(tuple(divisors.shape), F32, lambda: divisors)
    return planned


def _convolution_biases(planned: Mapping[str, PlannedTensor]) -> dict[str, PlannedTensor]:
    """Zeros for convolutions without a bias, which llama.cpp loads none of."""
    biases: dict[str, PlannedTensor] = {}
    for place, tensor in planned.items():
        bias = place.replace(".weight", ".bias")
        if place.endswith(".ssm_conv1d.weight") and bias not in planned:
            shape = tensor.shape[:1]
            biases[bias] = PlannedTensor(shape, F32, partial(torch.zeros, shape))
    return biases


def _read(tensors: PublishedTensors, name: str, transforms: Mapping[str, Transform]) -> Tensor:
    return _transformed(tensors[name], name, transforms)


def _transformed(tensor: Tensor, name: str, transforms: Mapping[str, Transform]) -> Tensor:
    bare = name.removesuffix(".weight").removesuffix(".bias")
    for ending, transform in transforms.items():
        if bare.endswith(f".{ending}"):
            return transform(tensor)
    return tensor


def _type_of(place: str, shape: tuple[int, ...], quantize: str, layers: int, values: Mapping[str, Any]) -> int:
    """The type of a tensor. Vectors, and what a state-space model multiplies number by number, are float32."""
    part = place.removesuffix(".weight").rpartition(".")[2]
    if len(shape) < 2 or part in ALWAYS_FLOAT or part.endswith("_norm"):
        return F32
    kind = TYPES[quantize]
    if kind == Q4_K:
        is_head = part == "output" or (part == "token_embd" and values["tie_word_embeddings"])
        layer = int(place.split(".")[1]) if place.startswith("blk.") else 0
        if is_head or (part in MORE_BITS and _has_more_bits(layer, layers)):
            kind = Q6_K
    if kind in BLOCK_FORMATS and shape[-1] % BLOCK_FORMATS[kind].size:
        kind = Q8_0 if shape[-1] % BLOCK_FORMATS[Q8_0].size == 0 else F16
    return kind


def _has_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's choice for q4_k_m: the first and last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
