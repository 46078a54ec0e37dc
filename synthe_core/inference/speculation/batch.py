"""The running sequences of a model that is decoded speculatively: in one batch, or each with a state of its own."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

import torch

from synthe_core import state as states
from synthe_core.inference.sequence import Sequence
from synthe_core.inference.speculation.passes import TokensPass, run_pass
from synthe_core.inference.state_batch import StateBatch
from synthe_core.model.language_model import ModelState


class OwnState:
    """A sequence's state after `num_read` of its tokens, and the pass over tokens behind those whose drafts are being
    verified: it is of sequence `index` there."""

    def __init__(self, state: ModelState, num_read: int) -> None:
        self.state, self.num_read = state, num_read
        self.verified: tuple[TokensPass, int] | None = None

    def settle(self, num_read: int) -> None:
        """Tokens up to there are verified: the state goes on to them if that costs no pass, else they are read once
        more with the next drafts."""
        assert self.verified is not None
        made, index = self.verified
        if made.has_state(index, num_read - self.num_read):
            self.state, self.num_read = made.state(index, num_read - self.num_read), num_read
        self.verified = None


class SpeculativeBatch(StateBatch):
    """`apart`: the sequences that have their own state; the others have slots. on_remove: called with each
    that leaves."""

    apart: dict[Sequence, OwnState]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.apart = {}
        self.on_remove: Callable[[Sequence], None] = lambda sequence: None

    @property
    def sequences(self) -> list[Sequence]:
        return [*super().sequences, *self.apart]

    def state_of(self, sequence: Sequence) -> Any:
        if sequence not in self.apart:
            return super().state_of(sequence)
        index = torch.tensor([0], device=self.model.device)
        return states.take(self._own_state(sequence), index)  # without the room behind its windows

    def remove(self, sequence: Sequence) -> None:
        self.on_remove(sequence)
        if self.apart.pop(sequence, None) is None:
            super().remove(sequence)

    def separate(self) -> None:
        """Gives every sequence a state of its own."""
        for sequence in super().sequences:
            own = OwnState(self.state_of(sequence), sequence.num_state_tokens)
            super().remove(sequence)
            self.apart[sequence] = own
        super().compact()

    def rejoin(self) -> list[tuple[Sequence, Exception]]:
        """Gives every sequence a slot; returns those whose state could not be had, with the reason."""
        joining: list[Sequence] = []
        failed: list[tuple[Sequence, Exception]] = []
        for sequence in self.apart:
            try:
                sequence.state = self._own_state(sequence)
                joining.append(sequence)
            except Exception as error:
                failed.append((sequence, error))
        self.apart = {sequence: self.apart[sequence] for sequence, _ in failed}
        if joining:
            self.add(joining)
        return failed

    def _own_state(self, sequence: Sequence) -> ModelState:
        """The state of a sequence apart after all that it has read in the batch's count; may cost a pass."""
        own = self.apart[sequence]
        count = sequence.num_state_tokens - own.num_read
        if own.verified is not None:
            made, index = own.verified
            return made.state(index, count)
        if not count:
            return own.state
        adapter = sequence.resolved.adapter
        with torch.inference_mode(), self.model.activate(adapter):
            made = run_pass(self.model, [unread_tokens(sequence, own)[:count]], [own.state], [adapter])
            return made.state(0, count)


def unread_tokens(sequence: Sequence, own: OwnState) -> Many[int]:
    """The tokens that a sequence's own state has not read: at least the newest."""
    first = own.num_read - sequence.num_past_tokens
    prompt, output = sequence.token_ids, sequence.output_token_ids
    return [*prompt[first:], *output[max(0, first - len(prompt)) :]]
