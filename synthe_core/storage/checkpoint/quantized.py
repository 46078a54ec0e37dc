"""Loading a model whose matrices stay quantised, one tensor at a time: no moment has all of its numbers in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.model.language_model import Backbone
from synthe_core.model.quantized_model import quantizable_matrices, set_matrix
from synthe_core.quantization.matrix import FloatMatrix, QuantizedMatrix
from synthe_core.quantization.packed import has_products, packed
from synthe_core.quantization.quantize import AS_STORED, MEMORY_FORMATS, quantize, vocabulary_format
from synthe_core.storage.checkpoint.weights import check_names, check_shape, weights
from synthe_core.storage.finite import check_finite

VOCABULARY = ("embedding.weight", "head.weight")


@torch.no_grad()
def load_quantized(
    model: Backbone,
    tensors: Mapping[str, Tensor],
    source: Path,
    format: str,
    *,
    double_quant: bool = False,
    products: str | None = None,
) -> None:
    """Gives `model`, built `without_storage`, the weights of `tensors`: the matrices in a format of `MEMORY_FORMATS`,
    or AS_STORED, in which case they have the numbers of the file to the last bit; everything else in float32. Embedding
    and head have 8 bits (see `vocabulary_format`). products: the type of device on which products are computed with
    what is in memory. On CPUs matrices get the layout of `quantization.packed` for that, and floats of 16 bits are as
    they are; a matrix of which there are no products (see `has_products`) is in float32.

    InputError names the first tensor that does not fit or is not finite; or a file without quantised matrices.
    """
    own, matrices = weights(model), quantizable_matrices(model)
    check_names(own, tensors, source)
    formats = set()
    for name, like in own.items():
        if name in matrices:
            form = vocabulary_format(format) if name in VOCABULARY else format
            matrix = _matrix(tensors, name, source, form, double_quant)
            check_shape(name, like, tuple(matrix.shape), source)
            formats.add(matrix.format)
            if products == "cpu":
                matrix = packed(matrix)
            if products is not None and not has_products(matrix, products):
                set_tensor(model, name, matrix.dequantize())
            else:
                set_matrix(model, matrices[name], matrix)
        else:
            value = check_finite(name, tensors[name], source)
            check_shape(name, like, tuple(value.shape), source)
            set_tensor(model, name, value)
        if (release := getattr(tensors, "release", None)) is not None:
            release()
    check_stored(format, formats, source)


def check_stored(format: str, formats: Collection[str], source: Path) -> None:
    """InputError for AS_STORED, where a file's matrices are in float32 alone."""
    if format == AS_STORED and set(formats) == {"float32"}:
        raise InputError(
            f"{source} has its weights in float32: as they are stored, nothing is quantised",
            f"choose another format: quantize={', '.join(MEMORY_FORMATS)}",
        )


def stored_matrix(tensors: Mapping[str, Tensor], name: str) -> QuantizedMatrix:
    """The matrix `name` with the codes, or in the float type, that its file has."""
    find = getattr(tensors, "quantized", None)
    matrix: QuantizedMatrix | None = None if find is None else find(name)
    return FloatMatrix(tensors[name].clone()) if matrix is None else matrix


def _matrix(tensors: Mapping[str, Tensor], name: str, source: Path, format: str, double_quant: bool) -> QuantizedMatrix:
    if format != AS_STORED:
        weight = check_finite(name, tensors[name], source)
        return quantize(weight, format, double_quant=double_quant and format == "nf4")
    matrix = stored_matrix(tensors, name)
    for part in matrix.parts():
        check_finite(name, matrix.rows(part), source)
    return matrix


def packed_matrix(tensors: Mapping[str, Tensor], name: str, source: Path, format: str) -> QuantizedMatrix | Tensor:
    """The matrix `name` as `load_quantized` packs it: in the layout of `quantization.packed`, in 16 bits, or in float32
    if there are no products with its format. InputError if it is not finite."""
    form = vocabulary_format(format) if name in VOCABULARY else format
    matrix = packed(_matrix(tensors, name, source, form, False))
    return matrix if has_products(matrix) else matrix.dequantize()


@torch.no_grad()
def set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Gives a parameter or buffer its value, and storage if it has none."""
    target = model.state_dict(keep_vars=True)[name]
    if not target.is_meta:
        target.copy_(value)
        return
    replace_tensor(model, target, value.to(target.dtype).clone())


def replace_tensor(model: nn.Module, target: Tensor, value: Tensor) -> None:
    """Puts a tensor in the place of a parameter or buffer, wherever the model has it."""
    made: Any = nn.Parameter(value, target.requires_grad) if isinstance(target, nn.Parameter) else value
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key in [key for key, tensor in held.items() if tensor is target]:
                cast(dict[str, Any], held)[key] = made
