"""One text by several sequences: each next token is drawn once, from the mixture of their distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError

Next = tuple[Tensor, Tensor | None]
"""What follows one token: float32 logits [1, V], and the model's confidence [1] where it is wanted."""


class Mixture:
    """p(token) = Σ weight p_i(token) over the members i, which have different prompts and adapters on one model.

    Every member reads the token that was drawn. The first member samples, with its own settings, and reports the text;
    the others report nothing, and all end together. weights: positive or 0, of any sum.
    """

    def __init__(self, weights: Many[float]) -> None:
        if not weights or min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise InputError("the weights of a mixture are not negative, and not all 0")
        self._log_weights = [math.log(each / sum(weights)) if each else -math.inf for each in weights]
        self.members: list[Any] = []  # the engine's sequences
        self._next: dict[Any, Next] = {}

    @property
    def is_complete(self) -> bool:
        """Whether it is known what follows every member's last token."""
        return len(self._next) == len(self.members)

    def put(self, member: Any, follows: Next) -> None:
        """Takes what follows a member's last token."""
        self._next[member] = follows

    def take(self) -> Next:
        """The mixture's log-probabilities and confidence, the same row for every member; the next token is begun."""
        rows = [self._next[member] for member in self.members]
        self._next = {}
        weighted = [logits.log_softmax(-1) + log for (logits, _), log in zip(rows, self._log_weights, strict=True)]
        logits = torch.cat(weighted).logsumexp(0, keepdim=True).expand(len(rows), -1)
        if any(confidence is None for _, confidence in rows):
            return logits, None
        weights = torch.tensor(self._log_weights, device=logits.device).exp()
        confidence = torch.cat([each for _, each in rows if each is not None])
        return logits, (weights @ confidence.float()).expand(len(rows))
