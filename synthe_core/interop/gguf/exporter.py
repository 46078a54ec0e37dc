"""The verb `export gguf`: a checkpoint as one file that llama.cpp loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, unknown
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.interop.gguf.export_families import DESCRIPTIONS, PREFERRED
from synthe_core.interop.gguf.export_tokenizer import tokenizer_metadata
from synthe_core.interop.gguf.outline import Outline
from synthe_core.interop.gguf.stored_tensors import FileModel, stored_tensors
from synthe_core.interop.gguf.writer import PlannedTensor, write_gguf
from synthe_core.interop.huggingface.exporter import language_model, trained_length
from synthe_core.quantization.ggml import BLOCK_FORMATS
from synthe_core.storage.atomic import new_file
from synthe_core.storage.checkpoint import Checkpoint

F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, BF16 = 0, 1, 2, 8, 12, 14, 30
TYPES = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": Q8_0, "q4_0": Q4_0, "q4_k_m": Q4_K}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_k_m": 15}  # general.file_type
MORE_BITS = ("attn_v", "ffn_down", "ffn_down_exps", "ffn_down_shexp")  # matrices that lose most by four bits
ALWAYS_FLOAT = ("ssm_conv1d", "ssm_a", "ssm_d", "ffn_gate_inp", "position_embd", "shortconv.conv")


def export_gguf(source: Path, *, out: Path | None = None, quantize: str = "f16") -> Iterator[Event]:
    """Writes the checkpoint `source` as a GGUF file and yields events; the last is a Result with its path.

    out: the file; exports/NAME-TYPE.gguf by default. quantize: an entry of `TYPES`, the type of the matrices; q4_k_m is
    llama.cpp's mixture of Q4_K and Q6_K. A matrix whose rows no block divides gets Q8_0 or F16. InputError for a model
    that no architecture of the format computes.
    """
    if quantize not in TYPES:
        raise unknown("type", quantize, TYPES)
    checkpoint = Checkpoint.open(source)
    outline = Outline(language_model(checkpoint), trained_length(checkpoint))
    target = file_model(outline, str(checkpoint.manifest.published.get("architecture", "")))
    path = out or Path("exports") / f"{checkpoint.recipe.name}-{quantize}.gguf"
    if path.is_file():
        raise InputError(f"{path} exists already", "name another file with --out, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = general(checkpoint.recipe.name, target, quantize)
    if "tokenizer.json" in checkpoint.manifest.files:
        metadata |= tokenizer_metadata(checkpoint.tokenizer(), checkpoint.vocab, source)
    else:
        yield Notice(f"{source} has no tokenizer, and so the file has none", "warning")
    yield from _warnings(outline, target)
    planned = _planned(checkpoint, target, quantize)
    total, count = sum(tensor.nbytes for tensor in planned.values()), outline.model.parameter_count()
    yield Notice(f"{target.name}: {count:,} parameters, {quantize}")
    yield Progress("export", 0, total, "bytes")
    with new_file(path) as temporary:
        write_gguf(temporary, metadata, planned)
    yield Progress("export", total, total, "bytes")
    yield Result({"architecture": target.name, "parameters": count, "bytes": total}, path)


def file_model(outline: Outline, published: str = "") -> FileModel:
    """The first architecture that computes the model, before all others the one preferred for its `published` class.
    InputError if there is none, with what the architecture of the class lacks, or the first."""
    preferred = PREFERRED.get(published)
    reasons: dict[str, str] = {}
    for name in sorted(DESCRIPTIONS, key=lambda name: name != preferred):
        if (description := DESCRIPTIONS[name](outline)) is None:
            continue
        try:
            return FileModel(name, description, outline)
        except InputError as error:
            reasons[name] = error.message
    kinds = ", ".join(dict.fromkeys(outline.kinds()))
    own = [name for name in reasons if published.lower().startswith(name.replace("-", ""))]
    reason = reasons[max(own, key=len, default=next(iter(reasons)))] if reasons else f"it is {kinds}"
    raise InputError(f"no GGUF architecture computes this model: {reason}", "synthe export hf writes it")


def general(name: str, target: FileModel, quantize: str) -> dict[str, Any]:
    """The metadata but for the tokenizer's."""
    metadata = {
        "general.architecture": target.name,
        "general.name": name,
        "general.file_type": FILE_TYPES[quantize],
        "general.quantization_version": 2,
    }
    return metadata | {f"{target.name}.{key}": value for key, value in target.description.metadata.items()}


def _warnings(outline: Outline, target: FileModel) -> Iterator[Notice]:
    """What llama.cpp makes of a file in another way than we."""
    window = target.description.metadata.get("attention.sliding_window")
    if window and target.name in ("llama", "phi3"):
        yield Notice(
            f"llama.cpp computes {target.name} without windows: texts beyond {window} tokens differ", "warning"
        )
    if any(each["key_size"] != each["value_size"] for each in outline.of("delta")):
        yield Notice("llama.cpp loads only delta nets whose keys are as large as their values", "warning")
    if outline.model.confidence is not None:
        yield Notice("the confidence head is left out: no architecture has one", "warning")


def _planned(checkpoint: Checkpoint, target: FileModel, quantize: str) -> dict[str, PlannedTensor]:
    """The tensors of the file, in the order of the architecture's names."""
    layers, tied = target.layers, "output.weight" not in target.sources
    return {
        name: PlannedTensor(shape, type_of(name, shape, quantize, layers, tied), read)
        for name, shape, read in stored_tensors(checkpoint, target)
    }


def type_of(place: str, shape: tuple[int, ...], quantize: str, layers: int, tied: bool) -> int:
    """The type of a tensor. Vectors, and what is multiplied number by number or decides a choice, are float32."""
    name = place.removesuffix(".weight")
    part = name.rpartition(".")[2]
    if len(shape) < 2 or name.endswith(ALWAYS_FLOAT) or part.endswith("_norm"):
        return F32
    kind = TYPES[quantize]
    if kind == Q4_K:
        is_head = part == "output" or (part == "token_embd" and tied)
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
