"""In which format a model's matrices are held and multiplied, chosen when it is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from synthe_core.errors import InputError, unknown
from synthe_core.hardware.probe import probe
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.ops.packed_linear import unavailable
from synthe_core.quantization.matrix import CodedMatrix, FloatMatrix, QuantizedMatrix
from synthe_core.quantization.packed import HALVES, PackedMatrix, has_products, is_packable
from synthe_core.quantization.quantize import AS_STORED, BFLOAT16
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.units import format_size

FLOAT32 = "float32"
MADE = (BFLOAT16, "int8", "int4", "int4_asymmetric")
WEIGHTS = ("auto", FLOAT32, AS_STORED, *MADE)
CODED = ("int8", "int4")
ON_CUDA = ("auto", FLOAT32, AS_STORED, BFLOAT16, *CODED)
"""The formats with products of their own on CUDA; elsewhere all of WEIGHTS have them."""
CHOSEN = "as --weights says"
FIRST = ("blocks.0.", "embedding.", "head.")


class WeightsChoice(NamedTuple):
    """format: one of `quantization.quantize`, None for float32. reason: why, in words."""

    format: str | None
    reason: str


def choose_weights(wanted: str, checkpoint: Checkpoint, device: str) -> WeightsChoice:
    """What `--weights` asks for, for a checkpoint on a type of device. InputError for what cannot be had.

    auto: as the file has them, where its matrices are quantised and can be multiplied by integers, or are floats of 16
    bits; else float32.
    """
    wanted = wanted.replace("-", "_")
    if wanted not in WEIGHTS:
        raise unknown("format of weights", wanted, WEIGHTS)
    if wanted == FLOAT32:
        return WeightsChoice(None, CHOSEN)
    if isinstance(checkpoint.recipe.model, PublishedSpec):
        missing: str | None = "transformers runs this model, with floats"
    else:
        missing = _missing_products(wanted, device)
    if wanted == "auto":
        if missing is not None or not _has_products(checkpoint, device):
            return WeightsChoice(None, missing or "the file has no matrices that are multiplied as they are")
        return WeightsChoice(AS_STORED, "as the file has them")
    if missing is not None:
        raise InputError(f"--weights {wanted}: {missing}", "leave it out, or choose float32")
    return WeightsChoice(wanted, CHOSEN)


def _missing_products(wanted: str, device: str) -> str | None:
    """Why matrices of a format are not multiplied as they are on a type of device, or None. On CUDA: floats of 16 bits
    by torch, codes with a scale a group by a Triton kernel."""
    if device != "cuda":
        return unavailable(device)
    if wanted not in ON_CUDA:
        return f"on CUDA the formats are {', '.join(each for each in ON_CUDA if each != 'auto')}"
    if wanted in CODED and "triton" not in probe().libraries:
        return "on CUDA codes are multiplied by a Triton kernel, and triton is not installed"
    return None


def _has_products(checkpoint: Checkpoint, device: str) -> bool:
    """Whether a matrix of the first block, of the embedding or of the head can be multiplied in the format that it
    has."""
    coded = device != "cuda" or "triton" in probe().libraries
    tensors = checkpoint.tensors
    find: Callable[[str], QuantizedMatrix | None] = getattr(tensors, "quantized", lambda name: None)
    for name in (name for name in tensors if name.startswith(FIRST)):
        if (matrix := find(name)) is not None:
            if coded and (has_products(matrix, device) or (device != "cuda" and is_packable(matrix))):
                return True
        elif (tensor := tensors[name]).dim() == 2 and tensor.dtype in HALVES:
            return True
    return False


def describe_weights(model: nn.Module) -> str:
    """The formats and the size of a model's matrices that are not in float32, and the size of its floats."""
    sizes: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, CodedMatrix | PackedMatrix | FloatMatrix):
            sizes[module.format] += module.nbytes
    formats = " and ".join(name for name, _ in sizes.most_common())
    floats = sum(parameter.nbytes for parameter in model.parameters())
    return f"{formats} weights ({format_size(sum(sizes.values()))}; {format_size(floats)} of float32)"
