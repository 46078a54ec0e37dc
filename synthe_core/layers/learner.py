"""The contract of everything inside a block.

Shape letters, used throughout: B batch rows, T time, D width, H heads, K key size, V value size, C chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.trace import Emission, Trace
from synthe_core.quantization.matrix import count_parameters, quantized_size
from synthe_core.state import nbytes

S = TypeVar("S")


class Spec(BaseModel):
    """Base of every configuration: frozen; an unknown key, infinity, NaN, and true or false for a number are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_not_true_or_false(cls, values: Any) -> Any:
        """YAML reads `on`, `off`, `yes` and `no` as true and false, and pydantic true as 1."""
        for key, value in values.items() if isinstance(values, dict) else ():
            info = cls.model_fields.get(key)
            if isinstance(value, bool) and info is not None and _takes(info.annotation, int, float):
                if _takes(info.annotation, bool, Any):
                    continue
                facts = {
                    "value": str(value).lower(),
                    "path": (key,),
                    "hint": "YAML reads on and yes as true, off and no as false",
                }
                raise PydanticCustomError("field", "a number is expected, not {value}", facts)
        return values


def _takes(annotation: Any, *kinds: Any) -> bool:
    """Whether one of `kinds` is part of an annotation."""
    return annotation in kinds or any(_takes(each, *kinds) for each in get_args(annotation))


class ResidualSpec(Spec):
    """How a block adds a learner f to the stream x: x' = skip · x + scale · f(norm(x)).

    Sources: norms after a learner: Liu et al. 2021 (Swin V2), Team OLMo 2024; before and after: Ding et al. 2021
    (Sandwich-LN); learners side by side: Wang & Komatsuzaki 2021 (GPT-J).
    """

    norm: Literal["pre", "post", "both", "shared", "stream"] = Field(
        "pre",
        description="pre: of what the learner reads; post: of what it adds; both; shared: it reads the normalised "
        "stream of the learner before it; stream: as pre, and the learner is added to the normalised stream",
    )
    parallel: bool = Field(False, description="read the stream that the learner before it reads, not the one after it")
    input_scale: float = Field(1.0, description="what its input is multiplied by, after the norm")
    scale: float = Field(1.0, description="what its output is multiplied by")
    skip: float = Field(1.0, description="what the stream is multiplied by before the learner's output is added")


class LearnerConfig(Spec):
    """Base of the learners' configurations."""

    residual: ResidualSpec | None = Field(
        None, description="how the block adds the learner to the stream; null: behind one norm, unscaled"
    )

    @model_serializer(mode="wrap")
    def _without_the_usual_residual(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Its keys, the residual last, and only where it is not the usual one."""
        written: dict[str, Any] = values(self)
        residual = written.pop("residual", None)
        return written if residual is None else written | {"residual": residual}


@dataclass
class Pass:
    """One forward call: what learners read besides their input, and what they publish besides their output. No module
    stores it.

    start:          the position of every row's first token, where the host knows it without asking the device.
    positions:      int64 [B, T], the index of each token in its sequence: in a block that some tokens leave out (see
                    `synthe_core.model.depth`), among those that run it.
    lengths:        int64 [B] or None; tokens at or after a row's length are padding and never touch state.
    signals:        causal [B, T] values published by one learner and read by another (surprise, confidence).
    shared:         causal [B, T, ...] tensors that one learner computes and later ones use in the same pass (values).
    losses:         auxiliary losses, added to the objective by the trainer.
    measures:       figures of this pass that training logs, 0-dim and without gradient (the share of tokens that a
                    gate selects).
    skipped:        floating-point operations that learners left out of this pass, of those that their `flops` state.
    buffer_updates: buffers of the model with their values after the training step (see `apply_buffer_updates`).
    exploration:    the tokens that train a depth router (see `model.depth.ExplorationSample`); None without any.
    without:        paths of the modules that this pass leaves out: they add nothing, and their state is unchanged.
    angles:         rotary angles that learners of this pass have computed (see `layers.rope.pass_angles`).
    exit_after:     how many blocks are before an early exit, None without one; exit_hidden: the normalised output of
                    the last of them, what the head reads there.
    tokens:         for a trace, int64 [B, T]: which tokens of the whole pass these are, where they are not all of them.
    """

    positions: Tensor
    lengths: Tensor | None = None
    signals: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    losses: list[tuple[str, Tensor]] = field(default_factory=list)
    measures: list[tuple[str, Tensor]] = field(default_factory=list)
    skipped: list[float | Tensor] = field(default_factory=list)
    buffer_updates: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    exploration: Any = None
    exit_after: int | None = None
    exit_hidden: Tensor | None = None
    without: frozenset[str] = frozenset()
    trace: Trace | None = None
    path: str = ""
    tokens: Tensor | None = None
    start: int | None = None
    angles: list[Any] = field(default_factory=list)
    mask: Tensor | None = None  # bool [B, T], True where a token is real; None when all are

    @classmethod
    def over(
        cls, x: Tensor, lengths: Tensor | None = None, start: Tensor | None = None, trace: Trace | None = None
    ) -> Pass:
        """The pass over `x` [B, T, ...] whose rows continue at position `start` (int64 [B]; None = 0)."""
        steps = torch.arange(x.shape[1], device=x.device)
        positions = steps.expand(x.shape[0], -1) if start is None else start[:, None] + steps
        mask = None if lengths is None else steps < lengths[:, None]
        return cls(positions=positions, lengths=lengths, trace=trace, mask=mask)

    def emit(self, name: str, value: Tensor, at: Tensor | None = None) -> None:
        """Records `value` in the trace, if there is one. Names: see `synthe_core.layers.trace`.

        at: int64 [B, N], the tokens of this pass that the value's N entries belong to; None where it has one for each.
        """
        if self.trace is not None:
            self.trace.record(self.path, name, value, self.tokens if at is None else self.global_tokens(at))

    def global_tokens(self, at: Tensor) -> Tensor:
        """The tokens `at`, int64 [B, N] of this pass, as indices into the whole pass."""
        return at if self.tokens is None else self.tokens.gather(1, at)

    def skip_flops(self, flops: float) -> None:
        """Records that every token of this pass skips `flops` operations."""
        self.skipped.append(flops * (self.positions.numel() if self.mask is None else self.mask.sum()))

    def last(self, history: Tensor, count: int) -> Tensor:
        """The last `count` real entries of each row of `history` [B, P + T, ...], whose first P precede this pass.

        A learner with a finite memory of inputs (a convolution, a window) takes its next state so. A row
        with fewer real entries than `count` repeats its first one in front; positions show that those are not real.
        """
        if self.lengths is None:
            return history[:, history.shape[1] - count :]
        prefix = history.shape[1] - self.positions.shape[1]
        index = self.lengths[:, None] + prefix - count + torch.arange(count, device=history.device)
        index = index.clamp_min(0).view(*index.shape, *[1] * (history.dim() - 2))
        return history.gather(1, index.expand(-1, -1, *history.shape[2:]))

    def valid(self, past: int, filled: Tensor) -> Tensor | None:
        """bool [B, past + T]: which entries of a window, `past` from before this pass and then its own, are real.

        Of the past ones of a row those are the last `filled` [B]; of its own, those that are no padding. None: all.
        """
        if self.mask is None and not past:
            return None
        ages = torch.arange(past, 0, -1, device=self.positions.device)
        now = self.mask if self.mask is not None else torch.ones_like(self.positions, dtype=torch.bool)
        return torch.cat([ages <= filled[:, None], now], dim=1)


@torch.no_grad()
def apply_buffer_updates(updates: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Ends a training step: every buffer takes the mean of its new values from the passes of the step."""
    values_of: dict[int, tuple[Tensor, list[Tensor]]] = {}
    for buffer, value in updates:
        values_of.setdefault(id(buffer), (buffer, []))[1].append(value)
    for buffer, values in values_of.values():
        buffer.copy_(torch.stack(values).mean(0))


def check_head_sizes(config: Any, width: int) -> None:
    """InputError where a head's sizes follow from the width, and `heads` do not divide it."""
    if width % config.heads and None in (config.key_size, config.value_size):
        raise InputError(
            f"{config.type}: width {width} is not divisible by heads {config.heads}",
            nearest_divisor(width, config.heads),
        )


class Learner(nn.Module, ABC, Generic[S]):
    """A layer that may learn while it runs: `forward(x, state, ctx) -> (y, state)`.

    The block owns the norm before it and the residual around it. A learner sets its own initial values when it is
    built and nothing overwrites them later. State is a tree of float32 tensors (see `synthe_core.state`), returned
    anew and never stored on the module. Signals are causal: a value at token t depends on nothing after t.
    """

    Config: ClassVar[type[Spec]]
    emits: ClassVar[Mapping[str, Emission]] = {}  # what it records in a trace, with the meaning
    causal: ClassVar[bool] = True  # False: an encoder's learner, which sees the whole text and cannot be decoded
    composable: ClassVar[bool] = False  # True: its operators alone read its state, and have a way over ranks

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.config = config
        self.width = width

    @property
    def state_dtype(self) -> torch.dtype:
        """float32, also under autocast; float64 for a learner whose parameters are."""
        kinds = (parameter.dtype for parameter in self.parameters())  # none where all matrices are quantised
        return torch.float64 if next(kinds, None) == torch.float64 else torch.float32

    @abstractmethod
    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> S:
        """The state of `batch` sequences before their first token."""

    @abstractmethod
    def forward(self, x: Tensor, state: S | None, ctx: Pass) -> tuple[Tensor, S]:
        """x [B, T, D], any T >= 1; `state` None means a fresh one. Returns y [B, T, D] and the state after x."""

    @property
    def alignment(self) -> int | None:
        """Two passes over a text that is cut at a multiple of this give the bits of one pass, in a batch-invariant
        context, with cuts at multiples of 16 only; None: no cut does."""
        return 1

    @property
    def composes(self) -> bool:
        """Whether ranks that have parts of a sequence compose what their tokens make of a state (`ops/sequence`), and
        need not wait for each other."""
        return self.composable

    def state_bytes(self, time: int) -> int:
        """Bytes of one sequence's state after `time` tokens: those of a fresh one, unless a learner's grows."""
        return nbytes(self.init_state(1, device="meta"))

    def flops(self, time: int) -> float:
        """Floating-point operations per token of a forward pass over `time` tokens; the matrices' by default.

        Counted: matrix products, two operations a multiplication with its addition, and the arithmetic on every number
        of a state or window that is larger than a token; a recurrence as it is defined, not as a kernel computes it
        (chunks cost more, an FFT less). Of a routed learner, the experts of one token. Not counted: work of a few
        operations a channel (norms, gates, activations, rotary positions, residuals, a softmax's exponentials) and
        look-ups, at the shipped sizes about 1% together. What a pass leaves out goes into `Pass.skipped`.
        """
        return 2.0 * (sum(p.numel() for p in self.parameters() if p.dim() >= 2) + quantized_size(self))

    @classmethod
    def publishes(cls, config: Any) -> tuple[str, ...]:
        """The signals that a learner of this configuration puts into `ctx.signals`."""
        return ()

    @classmethod
    def reads(cls, config: Any) -> tuple[str, ...]:
        """The signals that it needs of a learner before it; a model without one is refused when it is specified."""
        return ()

    @classmethod
    def shares(cls, config: Any) -> tuple[str, ...]:
        """The tensors that a learner of this configuration puts into `ctx.shared`."""
        return ()

    @classmethod
    def uses(cls, config: Any) -> tuple[str, ...]:
        """The tensors that it needs there, of a learner in this block or an earlier one."""
        return ()

    @classmethod
    def parts(cls, config: Any) -> dict[str, tuple[str, ...]]:
        """The parts that a stage of training may leave out: names, each with its modules. A part runs under the path of
        its first module, and needs all parts before it."""
        return {}

    @classmethod
    def without_parts(cls, config: Any, parts: Sequence[str]) -> Any:
        """The configuration without these `parts`."""
        return config

    def active_parameters(self) -> int:
        """Parameters that one token uses: all of them, unless a learner routes."""
        return count_parameters(self)
