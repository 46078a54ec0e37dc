"""Quantising a matrix for memory, by the name of a format."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from synthe_core.errors import unknown
from synthe_core.quantization import codes as scaled_codes
from synthe_core.quantization import int4_asymmetric, nf4
from synthe_core.quantization.formats import FORMATS
from synthe_core.quantization.matrix import (
    CHUNK,
    AsymmetricMatrix,
    CodedMatrix,
    FloatMatrix,
    Nf4Matrix,
    QuantizedMatrix,
)

AS_STORED = "as_stored"
"""The format that the file has: nothing is rounded once more."""

BFLOAT16 = "bfloat16"
"""Rounded to 16 bits, without a scale."""


def quantize(weight: Tensor, format: str, *, double_quant: bool = False) -> QuantizedMatrix:
    """The matrix [rows, columns] in one of `MEMORY_FORMATS` or BFLOAT16. double_quant: NF4's magnitudes are quantised
    too."""
    if format == BFLOAT16:
        return FloatMatrix(weight.to(torch.bfloat16, copy=True))
    check_format(format)
    if format == "int4_asymmetric":
        codes, scales, offsets = _by_rows(weight, int4_asymmetric.encode)
        return AsymmetricMatrix(codes, scales, offsets, weight.shape[1])
    if format in FORMATS:
        return CodedMatrix(format, FORMATS[format], *scaled_codes.encode(weight, FORMATS[format]), weight.shape[1])
    codes, magnitudes = _by_rows(weight, nf4.encode)
    return Nf4Matrix(codes, nf4.encode_magnitudes(magnitudes) if double_quant else magnitudes, weight.shape[1])


MEMORY_FORMATS = (*FORMATS, "int4_asymmetric", "nf4")
"""What `quantize` makes."""


def vocabulary_format(format: str) -> str:
    """The format of an embedding and a head where a model is quantised in `format`: their errors reach every logit, so
    that GGUF files too give them 8 bits or 6."""
    return format if format in (AS_STORED, BFLOAT16) else "int8"


def check_format(name: str) -> str:
    """The name of a format, or AS_STORED. InputError for another."""
    if name not in (*MEMORY_FORMATS, AS_STORED):
        raise unknown("format of quantised weights", name, (*MEMORY_FORMATS, AS_STORED))
    return name


def _by_rows(weight: Tensor, encode: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
    """The encoding of a matrix, some rows at a time."""
    parts = [encode(rows) for rows in weight.split(max(1, CHUNK // weight.shape[1]))]
    return [torch.cat(part) for part in zip(*parts, strict=True)]
