"""The matrices of linear maps, as the C of `FusedDecoder` multiplies them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synthe_core.adapters.lora_linear import LoRALinear, base_weight
from synthe_core.layers.projection import Linear
from synthe_core.layers.quantized import QuantizedLinear
from synthe_core.ops.fused_decode import MOST_PARTS
from synthe_core.quantization.matrix import FloatMatrix, QuantizedMatrix, StackedMatrix
from synthe_core.quantization.packed import PackedMatrix, has_products


def matrices_of(map: nn.Module) -> Sequence[Tensor | PackedMatrix] | None:
    """The matrices of a map, one below the other; None where C has no product with one of them."""
    matrix = map.matrix if isinstance(map, (QuantizedLinear, LoRALinear)) else None
    if matrix is not None:
        parts = [each.values if isinstance(each, FloatMatrix) else each for each in _flat(matrix)]
        fit = has_products(matrix) and all(not isinstance(each, Tensor) or each.is_contiguous() for each in parts)
        return parts if fit and len(parts) <= MOST_PARTS else None  # type: ignore[return-value]
    if type(map) not in (Linear, nn.Linear, LoRALinear):
        return None
    assert isinstance(map, nn.Linear)
    weight = base_weight(map)
    tensors = [weight]
    if isinstance(map, LoRALinear):
        for change in [map.low_rank(slot) for slot in map.slots]:
            tensors += [change.lora_A, change.lora_B]
    return [weight] if weight.is_contiguous() and all(each.dtype == torch.float32 for each in tensors) else None


def _flat(matrix: QuantizedMatrix) -> list[QuantizedMatrix]:
    return matrix.each if isinstance(matrix, StackedMatrix) else [matrix]
