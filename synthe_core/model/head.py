"""The head of a language model: the logits of the next token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synthe_core.layers.projection import Linear
from synthe_core.layers.quantized import QuantizedLinear
from synthe_core.ops.cross_entropy import TopPrediction, linear_cross_entropy, quantized_cross_entropy
from synthe_core.quantization.matrix import QuantizedMatrix


class Head(Linear):
    """l = cap(scale W h + b) with cap(l) = c tanh(l / c), or l where no cap c is given. h [..., D], W [V, D], b [V] or
    none.

    Source of the cap: Bello et al. 2016; of its use in language models: Gemma Team 2024.
    """

    def __init__(
        self, width: int, vocab: int, scale: float = 1.0, cap: float | None = None, bias: bool = False
    ) -> None:
        super().__init__(width, vocab, bias=bias)
        self.scale, self.cap = scale, cap

    @classmethod
    def like(cls, head: Head, map: nn.Linear) -> Head:
        """The head with the parameters of another map."""
        made = cls(map.in_features, map.out_features, head.scale, head.cap, map.bias is not None)
        made.weight, made.bias = map.weight, map.bias
        return made.train(head.training)

    def forward(self, x: Tensor) -> Tensor:
        return self._capped(super().forward(self.scaled(x)))

    def in_dtype(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The logits computed in a dtype, whatever autocast says."""
        return self._capped(self.project(self.scaled(x), dtype=dtype))

    def cross_entropy(
        self, hidden: Tensor, targets: Tensor, with_top: bool = False, per_token: bool = False
    ) -> tuple[Tensor, Tensor, TopPrediction | None]:
        """The loss of `linear_cross_entropy` on these logits."""
        hidden, weight = self.scaled(hidden), self.weight
        if self.bias is not None:  # one more channel, which is 1
            hidden = torch.cat([hidden, hidden.new_ones(*hidden.shape[:-1], 1)], -1)
            weight = torch.cat([weight, self.bias[:, None]], 1)
        return linear_cross_entropy(hidden, weight, targets, with_top, self.cap, per_token)

    def scaled(self, x: Tensor) -> Tensor:
        """scale h: what the matrix is applied to."""
        return x if self.scale == 1.0 else x * self.scale

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class QuantizedHead(QuantizedLinear, Head):
    """A head whose matrix stays quantised; the loss has a part of it dequantised at a time."""

    def __init__(self, base: Head, matrix: QuantizedMatrix) -> None:
        super().__init__(base, matrix)
        self.scale, self.cap = base.scale, base.cap

    def cross_entropy(
        self, hidden: Tensor, targets: Tensor, with_top: bool = False, per_token: bool = False
    ) -> tuple[Tensor, Tensor, TopPrediction | None]:
        hidden = self.scaled(hidden)
        return quantized_cross_entropy(hidden, self.matrix, targets, with_top, self.cap, self.bias, per_token)

    def forward(self, x: Tensor) -> Tensor:
        return self._capped(QuantizedLinear.forward(self, self.scaled(x)))
