"""Maps and embeddings whose frozen matrix stays quantised in memory, in place of the module that had it in float32.

`weight` of either is the dequantised matrix, float32 and without a gradient, made whenever it is read: for learners
that pass a matrix to an operator as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synthe_core.layers.projection import Linear
from synthe_core.ops.quantized_linear import quantized_linear
from synthe_core.quantization.matrix import QuantizedMatrix


class QuantizedLinear(Linear):
    """y = W x + b of a quantised W (see `ops.quantized_linear`); x [..., in], y [..., out]."""

    def __init__(self, base: nn.Linear, matrix: QuantizedMatrix) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.matrix = matrix
        self._parameters["bias"] = base._parameters["bias"]
        self.training = base.training

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.matrix.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.matrix, self.bias)

    def project(
        self, x: Tensor, outputs: slice | None = None, *, bias: bool = True, dtype: torch.dtype | None = None
    ) -> Tensor:
        return quantized_linear(x, self.matrix, self.bias if bias else None, outputs, dtype)


class QuantizedEmbedding(nn.Embedding):
    """Rows of a quantised matrix: tokens int64 [...] -> float32 [..., columns]."""

    def __init__(self, matrix: QuantizedMatrix) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = matrix.shape
        self.padding_idx = self.max_norm = None
        self.matrix = matrix

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.matrix.dequantize()

    def forward(self, input: Tensor) -> Tensor:
        return self.matrix.rows(input.flatten()).view(*input.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def quantized_matrix(module: nn.Module) -> QuantizedMatrix | None:
    """The quantised matrix of a map or an embedding; None for one that has floats."""
    matrix = module._modules.get("matrix")
    return matrix if isinstance(matrix, QuantizedMatrix) else None
