"""The state of a model as a cache of transformers, for `generate`."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache

from synthe_core import state as states
from synthe_core.errors import InputError
from synthe_core.model.language_model import ModelState


class SyntheCache(Cache):
    """The state of B rows, in place of keys and values.

    `state` is a value: a pass puts another one in its place, and `copy.deepcopy` of the cache is a fork of the text.
    `length` counts the columns that the passes have read, padding included: what `generate` counts.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, state: ModelState | None = None, length: int = 0) -> None:
        super().__init__(layers=[])
        self.state, self.length = state, length

    def advance(self, state: ModelState, columns: int) -> None:
        """Takes the state after a pass over as many columns."""
        self.state, self.length = state, self.length + columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return -1 if self.state is None else states.rows(self.state)

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    def reset(self) -> None:
        self.state, self.length = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows are replaced by those of the indices int64 [B]."""
        if self.state is not None:
            self.state = states.take(self.state, beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            rows = torch.arange(self.batch_size, device=self.state.position.device)
            self.state = states.take(self.state, rows.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        raise InputError(
            "a recurrent state cannot be shortened", "copy the cache before the tokens that may be dropped"
        )

    def update(self, *_: Any, **__: Any) -> NoReturn:
        raise InputError("this cache holds a state of synthe's, and no keys and values", "use it with that model alone")
