"""A sequence: one request inside the engine, and how far it has come."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple

from torch import Tensor

from synthe_core.inference.constraints import Constraint
from synthe_core.inference.mixture import Mixture
from synthe_core.inference.model_registry import ResolvedModel
from synthe_core.inference.outputs import FinishReason, Output, OutputCallback, PromptLogprob
from synthe_core.inference.prefix_cache import owned_fingerprint
from synthe_core.inference.request import Request
from synthe_core.inference.sampler import SamplingState
from synthe_core.model.session import Session


class SequenceStatus(Enum):
    WAITING = auto()  # for room
    PREFILLING = auto()  # its prompt is being read
    RUNNING = auto()  # it has a slot in the batch and generates
    PAUSED = auto()  # it has begun, and waits for room again
    SAVING = auto()  # it has ended, and its session is being saved
    FINISHED = auto()


class Draft(NamedTuple):
    """Drafted tokens for the places of a sequence's output from `first` on; what had been accepted before them."""

    tokens: Many[int]
    first: int
    accepted_before: int


@dataclass(eq=False)
class Sequence:
    """One text that is read and continued.

    resolved:            the model, the adapter and their fingerprints.
    sampling:            set when the sequence is admitted, with `constraint` in it.
    token_ids:           tokens to read; with a session, the token that it left unread comes first.
    num_past_tokens:     tokens that the session had read before those.
    num_computed_tokens: how many of `token_ids` the model has read.
    num_cached_tokens:   prompt tokens, the session's past included, that need not be computed.
    state:               the model's state of one row after `num_computed_tokens`; None at the beginning, and while the
                         batch holds it. Nobody writes to it: sequences that have read the same share the object. At
                         the end it is the state after all but the last token, if one is to be kept.
    state_bytes:         what the state may take at the end of the sequence.
    keep_state:          the state is wanted at the end.
    session:             where the sequence continues, if not from a session of the store.
    mixture:             with which sequences it generates one text; None for a text of its own.
    next_chunk:          what the next pass over the prompt computes; see `prefill`.
    error:               what ended the sequence, with the finish reasons "error" and "refused".
    num_drafted_tokens:  of speculative decoding, and how many of them were accepted. draft: being verified.
    hidden_sum:          float32 [D]: of the tokens read so far, where the request pools them.
    prompt_logprobs:     those not reported yet. last_prompt_logits [V]: of the next prompt token to report.
    """

    request: Request
    on_output: OutputCallback
    resolved: ResolvedModel
    constraint: Constraint | None = None
    token_ids: list[int] = field(default_factory=list)
    sampling: SamplingState = field(init=False)
    status: SequenceStatus = SequenceStatus.WAITING
    num_past_tokens: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    output_token_ids: list[int] = field(default_factory=list)
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    draft: Draft | None = None
    state: Any = None
    state_bytes: int = 0
    keep_state: bool = False
    session: Session | None = None
    mixture: Mixture | None = None
    next_chunk: tuple[int, Hashable] | None = None
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)
    last_prompt_logits: Tensor | None = None
    hidden_sum: Tensor | None = None
    admitted_at: float = 0.0
    finish_reason: FinishReason | None = None
    error: Exception | None = None

    @property
    def fingerprint(self) -> str:
        """What identifies its states: a digest of the model's weights and its adapter's, and the owner."""
        return owned_fingerprint(self.resolved.fingerprints.weights, self.request.owner)

    @property
    def finished(self) -> bool:
        """Whether it has ended; its session may still be on its way to the disk."""
        return self.status in (SequenceStatus.SAVING, SequenceStatus.FINISHED)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens before the first generated one, the session's past included."""
        return self.num_past_tokens + len(self.token_ids)

    @property
    def num_prefill_tokens(self) -> int:
        """How many of `token_ids` are read. The last one stays unread if nothing is generated and the state is kept: a
        session continues with it."""
        keeps_state = self.keep_state or self.request.session_id is not None
        return len(self.token_ids) - (self.request.max_tokens == 0 and keeps_state)

    @property
    def num_state_tokens(self) -> int:
        """How many tokens the state has read while the sequence generates."""
        return self.num_prompt_tokens + max(0, len(self.output_token_ids) - 1)

    @property
    def last_token_id(self) -> int:
        """The newest token, which the state has not read."""
        return self.output_token_ids[-1] if self.output_token_ids else self.token_ids[-1]

    @property
    def is_cacheable(self) -> bool:
        """Whether all that its state has read is in `token_ids`: what a session read before them is not known. What an
        embedding has read, nobody continues."""
        return self.num_past_tokens == 0 and not self.request.pooling

    def begin_draft(self, tokens: Many[int]) -> None:
        """The next tokens are compared with these."""
        self.num_drafted_tokens += len(tokens)
        self.draft = Draft(tokens, len(self.output_token_ids), self.num_accepted_tokens)

    def append(self, token_id: int) -> None:
        """Adds a generated token."""
        if self.draft is not None:
            place = len(self.output_token_ids) - self.draft.first
            self.num_accepted_tokens += place < len(self.draft.tokens) and self.draft.tokens[place] == token_id
        self.output_token_ids.append(token_id)

    def end_draft(self) -> int:
        """How many tokens of the draft were accepted."""
        assert self.draft is not None
        accepted, self.draft = self.num_accepted_tokens - self.draft.accepted_before, None
        return accepted

    def emit(self, output: Output) -> bool:
        """Passes an output on; returns whether the receiver stops the sequence."""
        return self.on_output(output)
