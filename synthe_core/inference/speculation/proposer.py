"""What speculative decoding needs from whatever writes drafts, and the settings of a model that has one."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from synthe_core.adapters.lora import Adapter
from synthe_core.inference.speculation.comparison import Comparison
from synthe_core.inference.speculation.draft_length import PassCosts
from synthe_core.model.language_model import ModelState

MOST_TOKENS = 16


class DraftRequest(NamedTuple):
    """A draft of at most `most` tokens for a text is wanted.

    key: the text's own. prompt, output: its tokens; what a session has read before them is not known. state: the
    model's, after `num_read` of those tokens. adapter: of the text.
    """

    key: Hashable
    prompt: Many[int]
    output: Many[int]
    state: ModelState
    num_read: int
    adapter: Adapter | None
    most: int


class Proposer(Protocol):
    """Writes drafts. It may remember what it likes of a text until `forget`; it changes no state.

    name: for status and log. is_free: whether a draft costs next to nothing.
    """

    name: str
    is_free: bool

    def matched(self, request: DraftRequest) -> int | None:
        """How many tokens of the text's end a draft would follow from, by which its chance of being accepted is
        estimated: 0 for no draft; None where that is no question of length."""

    def propose(self, requests: Many[DraftRequest]) -> list[list[int]]:
        """A draft for each request; an empty one where there is nothing to offer."""

    def forget(self, key: Hashable) -> None:
        """The text has ended, or is drafted for no more."""


@dataclass
class Speculation:
    """How a model's sequences are decoded speculatively, and what was measured of it.

    most_tokens: of a draft. clock: seconds, by which passes are measured. always: drafts are as long as they may be,
    whether that pays or not. costs, batch_costs: of passes with drafts by their tokens, and of passes without by their
    sequences. comparison: of both ways, for several sequences. drafted_tokens, accepted_tokens: of all texts. failure:
    why there are no more drafts; "" as long as there are.
    """

    proposer: Proposer
    most_tokens: int = MOST_TOKENS
    clock: Callable[[], float] = time.perf_counter
    always: bool = False
    costs: PassCosts = field(default_factory=PassCosts)
    batch_costs: PassCosts = field(default_factory=PassCosts)
    comparison: Comparison = field(default_factory=Comparison)
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    failure: str = ""

    @property
    def summary(self) -> str:
        """For status and log."""
        return f"off: {self.failure}" if self.failure else self.proposer.name
