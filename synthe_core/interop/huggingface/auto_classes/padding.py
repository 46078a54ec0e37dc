"""Attention masks of transformers as lengths: the real tokens of every row moved to its front."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.errors import InputError


class Columns(NamedTuple):
    """Where the real tokens of a batch are. order: int64 [B, T], for each place the column that comes there; real
    tokens first, in their order. lengths: int64 [B], how many of them a row has."""

    order: Tensor
    lengths: Tensor

    def front(self, values: Tensor) -> Tensor:
        """`values` [B, T, ...] in this order."""
        return values.gather(1, _expanded(self.order, values))

    def back(self, values: Tensor) -> Tensor:
        """The inverse of `front`."""
        return torch.empty_like(values).scatter(1, _expanded(self.order, values), values)


def columns_of(mask: Tensor | None, batch: int, time: int) -> Columns | None:
    """The columns of an attention mask [B, >= T], whose last T columns are those of this pass; None where every token
    is real. InputError for a mask of another shape."""
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < time:
        raise InputError(
            f"attention_mask is {list(mask.shape)}, and the tokens are {[batch, time]}",
            "give one with a row for each text, 1 for a token and 0 for padding",
        )
    padding = mask[:, mask.shape[1] - time :] == 0
    if not bool(padding.any()):
        return None
    return Columns(padding.int().argsort(dim=1, stable=True), time - padding.sum(1))


def _expanded(order: Tensor, values: Tensor) -> Tensor:
    return order.view(*order.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
