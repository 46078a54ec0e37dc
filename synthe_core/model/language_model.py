"""A language model: embedding, blocks of learners, norm, head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from synthe_core.errors import InputError, closest, unknown
from synthe_core.layers import LAYERS, LearnerSpec
from synthe_core.layers.adapter_batch import AdapterBatch, current_adapters, use_adapters
from synthe_core.layers.byte_patch import BytePatch
from synthe_core.layers.learner import Learner, Pass, Spec
from synthe_core.layers.projection import Linear
from synthe_core.layers.trace import Trace
from synthe_core.model.block import EPS, Block, RMSNorm
from synthe_core.model.confidence import ConfidenceHead, ConfidenceSpec
from synthe_core.model.depth import Choice, DepthSpec, ExplorationSample, Router
from synthe_core.model.parts import parts, without_parts
from synthe_core.ops.cross_entropy import IGNORED, linear_cross_entropy
from synthe_core.ops.linear import linear

EMBEDDING_STD = 0.02


class ClassifySpec(Spec):
    """The head of an encoder: one class for the whole text."""

    type: Literal["classify"] = "classify"
    classes: int = Field(..., ge=2, description="how many; the most frequent labels of the data are kept")
    pool: Literal["attention", "mean"] = Field("attention", description="how the tokens become one vector")


class ModelSpec(Spec):
    """The shape of a model: `block` is the list of learners, repeated `blocks` times."""

    width: int = Field(..., ge=1, description="channels of the residual stream")
    blocks: int = Field(..., ge=1, le=1000, description="how many times the block is repeated")
    block: list[LearnerSpec] = Field(..., min_length=1, max_length=100, description="the learners of a block, in order")
    tie: bool = Field(True, description="one matrix for the embedding and the head")
    embed_norm: bool = Field(True, description="normalise embeddings to unit scale before the first block")
    norm_eps: float = Field(EPS, gt=0, description="added to a mean square by the norms")
    depth: DepthSpec | None = Field(None, description="lets each token decide how many blocks it runs; null: all")
    confidence: ConfidenceSpec | None = Field(
        None, description="a small head that predicts whether the most likely next token is correct"
    )
    head: ClassifySpec | None = Field(
        None, description="classification head, which makes the model an encoder; null: a language model"
    )
    patch: BytePatch.Config | None = Field(None, description="an encoder's stem: strided convolution over the tokens")

    @property
    def published(self) -> tuple[str, ...]:
        """The signals that the learners of a block publish."""
        names = [name for spec in self.block for name in LAYERS[spec.type].publishes(spec)]  # type: ignore[attr-defined]
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _depth_leaves_blocks_to_choose(self) -> ModelSpec:
        if self.depth is None:
            return self
        if self.depth.min >= self.blocks:
            raise field_error(
                ("depth", "min"),
                f"{self.depth.min} of {self.blocks} blocks are run by every token, which leaves none to choose",
                f"at most {self.blocks - 1}, or leave out model.depth" if self.blocks > 1 else "leave out model.depth",
            )
        if self.head is not None:
            raise field_error(("depth",), "an encoder runs every block", "leave out model.depth, or model.head")
        return self

    @model_validator(mode="after")
    def _an_encoder_predicts_no_token(self) -> ModelSpec:
        if self.confidence is not None and self.head is not None:
            raise field_error(
                ("confidence",), "an encoder predicts no next token", "leave out model.confidence, or model.head"
            )
        return self

    @model_validator(mode="after")
    def _only_encoders_see_the_whole_text(self) -> ModelSpec:
        if self.head is not None:
            return self
        for place, spec in enumerate(self.block):
            if not LAYERS[spec.type].causal:  # type: ignore[attr-defined]
                raise field_error(
                    ("block", place),
                    f"{spec.type} sees the whole text, and a language model may not see what it is to predict",  # type: ignore[attr-defined]
                    "use it in an encoder: model.head={type: classify, classes: N}; `hyena` is its causal kin",
                )
        if self.patch is not None:
            raise field_error(
                ("patch",),
                "a stem shortens the text, and a language model predicts every token",
                "use it in an encoder (model.head), or put the learner `byte_patch` into the block",
            )
        return self

    @model_validator(mode="after")
    def _signals_come_before_their_readers(self) -> ModelSpec:
        for place, name in self.unresolved_signals():
            raise field_error(
                ("block", place),
                f"no learner before it in the block publishes the signal '{name}'",
                _publisher_hint(name),
            )
        return self

    def unresolved_signals(self) -> Iterator[tuple[int, str]]:
        """Every signal that a learner reads and no learner before it publishes: the reader's place, the name."""
        published: set[str] = set()
        for place, spec in enumerate(self.block):
            learner = LAYERS[spec.type]  # type: ignore[attr-defined]
            yield from ((place, name) for name in learner.reads(spec) if name not in published)
            published.update(learner.publishes(spec))


def _publisher_hint(name: str) -> str:
    """The hint for a signal that is not published: the learners that publish it, or the nearest name."""
    by_signal: dict[str, list[str]] = {}
    for learner in LAYERS:
        for signal in LAYERS[learner].publishes(LAYERS[learner].Config()):
            by_signal.setdefault(signal, []).append(learner)
    if name in by_signal:
        return f"put one that does before it: {', '.join(by_signal[name])}"
    near = closest(name, by_signal)
    return f"did you mean '{near}'?" if near else f"signals: {', '.join(sorted(by_signal))}"


def field_error(path: tuple[str | int, ...], message: str, hint: str) -> PydanticCustomError:
    """An error of several keys together, reported at `path` below the mapping that is validated."""
    return PydanticCustomError("field", "{message}", {"message": message, "path": path, "hint": hint})


class ModelState(NamedTuple):
    """The state of a model: how many tokens each row has seen, int64 [B], and every learner's state."""

    position: Tensor
    blocks: list[list[Any]]


class Loss(NamedTuple):
    """`total` nats over `scored` tokens (differentiable), `auxiliary` losses, and `each` token's loss [B, T].

    measures: figures of the pass, the mean of each name over the learners that measure it; 0-dim, no gradient.
    skipped: floating-point operations that learners left out of the pass, of those that `flops` states; 0-dim or 0.0.
    buffer_updates: buffers and their values after the step, for `apply_buffer_updates`.
    state: the recurrent state after the batch, where an objective carries it.
    """

    total: Tensor
    scored: Tensor
    auxiliary: dict[str, Tensor]
    each: Tensor
    measures: dict[str, Tensor]
    skipped: Tensor | float
    buffer_updates: Sequence[tuple[Tensor, Tensor]] = ()
    state: ModelState | None = None

    @property
    def objective(self) -> Tensor:
        """Mean cross-entropy in nats plus the auxiliary losses: what training minimises."""
        mean = self.total / self.scored.clamp_min(1)
        return mean + sum(self.auxiliary.values()) if self.auxiliary else mean


def auxiliary(ctx: Pass) -> dict[str, Tensor]:
    """The auxiliary losses of a pass, summed by name."""
    by_name: dict[str, Tensor] = {}
    for name, value in ctx.losses:
        by_name[name] = by_name[name] + value if name in by_name else value
    return by_name


def measures(ctx: Pass) -> dict[str, Tensor]:
    """The measures of a pass, the mean by name."""
    by_name: dict[str, list[Tensor]] = {}
    for name, value in ctx.measures:
        by_name.setdefault(name, []).append(value.detach().float())
    return {name: torch.stack(values).mean() for name, values in by_name.items()}


class Backbone(nn.Module):
    """Embedding, blocks, norm: every model without its head.

    With `recompute`, blocks keep only their inputs for the backward pass and run again there (Chen et al. 2016).
    `without` names the parts that passes leave out (see `leave_out`).
    """

    def __init__(self, spec: ModelSpec, vocab: int, recompute: bool = False) -> None:
        super().__init__()
        self.spec, self.vocab, self.recompute = spec, vocab, recompute
        self.without: frozenset[str] = frozenset()
        self._excluded_paths: frozenset[str] = frozenset()
        self.embedding = nn.Embedding(vocab, spec.width)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.blocks = nn.ModuleList(Block(spec.block, spec.width, spec.norm_eps) for _ in range(spec.blocks))
        self.norm = RMSNorm(spec.width, spec.norm_eps)
        self.router = None if spec.depth is None else Router(spec.depth, spec.width, spec.blocks, spec.norm_eps)

    def init_state(self, batch: int, *, device: Any = None) -> ModelState:
        """The state of `batch` sequences that have not begun."""
        device = self.embedding.weight.device if device is None else device
        position = torch.zeros(batch, dtype=torch.int64, device=device)
        blocks = [block.init_state(batch, device=device) for block in self.blocks]  # type: ignore[operator]
        for index in self.routed:
            blocks[index].append(position.clone())  # its own clock
        return ModelState(position, blocks)

    def leave_out(self, names: Iterable[str]) -> None:
        """From now on passes leave out the parts of these names (see `parts`), and no others.

        Such a part adds nothing, costs nothing and keeps its state and weights, until another call.
        """
        without = frozenset(names)
        known = parts(self.spec) if without else {}
        for name in without - known.keys():
            raise unknown("part of the model", name, known)
        self.without = without
        self._excluded_paths = frozenset(path for name in self.without for path in known[name].paths)

    @property
    def signals(self) -> tuple[str, ...]:
        """The names of the signals that its learners publish."""
        return tuple(without_parts(self.spec, self.without).published)

    def embed(self, tokens: Tensor) -> Tensor:
        """What the first block reads, [B, T, D]."""
        x = self.embedding(tokens)
        if self.spec.embed_norm:  # a unit-scale stream, whatever scale the shared embedding needs as a head
            x = F.rms_norm(x, (self.spec.width,), eps=self.spec.norm_eps)
        return x

    def run(self, x: Tensor, states: list[list[Any]], ctx: Pass) -> tuple[Tensor, list[list[Any]]]:
        """The normalised output of the last block, [B, T, D], and the states of all blocks after it."""
        after = []
        choices: dict[int, Choice] = {}
        ctx.without = self._excluded_paths
        for index, (block, remembered) in enumerate(zip(self.blocks, states, strict=True)):
            if self.router is not None and index == self.routed[0]:
                chosen, ctx.exploration = self.router(x, ctx, self._block_flops)
                choices = dict(zip(self.routed, chosen, strict=True))
            step = partial(choices[index].run, block) if index in choices else block
            sample = ctx.exploration if index in choices else None
            if sample is not None:
                sample.record(x)
            ctx.path = f"blocks.{index}"
            if self.recompute and torch.is_grad_enabled():
                again = partial(_recompute, dict(ctx.signals), current_adapters(), step)
                x, remembered = checkpoint(again, x, remembered, ctx, use_reentrant=False)
            else:
                x, remembered = step(x, remembered, ctx)
            if sample is not None:
                sample.record(x)
            after.append(remembered)
        return self.norm(x), after

    @property
    def routed(self) -> Sequence[int]:
        """The blocks that a router may skip."""
        return () if self.router is None else self.router.places

    def _block_flops(self, time: int) -> float:
        """Floating-point operations per token of one block."""
        return sum(learner.flops(time) for learner in self.blocks[-1].learners)  # type: ignore[union-attr]

    @property
    def learners(self) -> list[Learner[Any]]:
        """The learners of every block, in order; a learner includes those inside it."""
        return [learner for block in self.blocks for learner in block.learners]  # type: ignore[union-attr]

    def parameter_count(self) -> int:
        """Distinct parameters; a shared embedding counts once."""
        return sum(p.numel() for p in self.parameters())

    def active_parameter_count(self) -> int:
        """The parameters that one token uses: without the experts that it is not routed to."""
        idle = sum(sum(p.numel() for p in each.parameters()) - each.active_parameters() for each in self.learners)
        return self.parameter_count() - idle


def _recompute(
    signals: dict[str, Tensor],
    adapters: AdapterBatch | None,
    block: Callable[..., Any],
    x: Tensor,
    states: list[Any],
    ctx: Pass,
) -> Any:
    """A block that may run twice: the second time too it reads the signals of earlier blocks, not of later ones, and
    has the adapters of its pass."""
    ctx.signals = dict(signals)
    with use_adapters(adapters):
        return block(x, states, ctx)


class LanguageModel(Backbone):
    """Next-token model over `vocab` tokens. One forward for every T: decoding is T = 1, prefill any T."""

    def __init__(self, spec: ModelSpec, vocab: int, recompute: bool = False) -> None:
        if spec.head is not None:
            raise InputError("this recipe is of an encoder, which is no language model", "leave out model.head")
        super().__init__(spec, vocab, recompute)
        self.head = Linear(spec.width, vocab, bias=False)
        if spec.tie:
            self.head.weight = self.embedding.weight
        else:
            nn.init.zeros_(self.head.weight)
        self.confidence = None  # initialised last, so that all other initial values are the same with and without it
        if spec.confidence is not None:
            self.confidence = ConfidenceHead(spec.confidence, spec.width, spec.published)

    def hidden(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None, trace: Trace | None = None
    ) -> tuple[Tensor, ModelState, Pass]:
        """The normalised output of the last block, [B, T, D], before the head."""
        state = state or self.init_state(tokens.shape[0])
        ctx = Pass.over(tokens, lengths, state.position, trace)
        hidden, after = self.run(self.embed(tokens), state.blocks, ctx)
        seen = tokens.shape[1] if lengths is None else lengths
        return hidden, ModelState(state.position + seen, after), ctx

    def forward(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None, trace: Trace | None = None
    ) -> tuple[Tensor, ModelState]:
        """Logits [B, T, V] of the token after each of `tokens` int64 [B, T], and the state after them."""
        hidden, after, _ = self.hidden(tokens, state, lengths, trace)
        return self.head(hidden), after

    def next_logits(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """Logits [B, V] after the last real token only: what decoding needs of a prompt."""
        hidden, after, ctx = self.hidden(tokens, state, lengths)
        return self.head(ctx.last(hidden, 1)[:, 0]), after

    def loss(
        self, tokens: Tensor, targets: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Loss, ModelState]:
        """Cross-entropy of `targets` int64 [B, T] (-100 = not scored) given the tokens up to each."""
        hidden, after, ctx = self.hidden(tokens, state, lengths)
        confidence = None if "confidence" in ctx.without else self.confidence
        total, each, top = linear_cross_entropy(hidden, self.head.weight, targets, confidence is not None)
        scored, logged, losses = (targets != IGNORED).sum(), measures(ctx), auxiliary(ctx)
        if confidence is not None and top is not None:
            losses["confidence"] = confidence.loss(hidden, ctx.signals, top, targets != IGNORED)
        elif self.confidence is not None:
            ctx.skip_flops(self.confidence.flops())
        if ctx.exploration is not None and torch.is_grad_enabled():
            losses["depth"] = self._router_loss(ctx.exploration, targets)
        return Loss(total, scored, losses, each, logged, sum(ctx.skipped), tuple(ctx.buffer_updates)), after

    def _router_loss(self, sample: ExplorationSample, targets: Tensor) -> Tensor:
        """The router's loss: how well its scores predict the blocks' gain at the tokens that ran all of them."""
        answers = targets.flatten().index_select(0, sample.indices)
        sample = sample.only(answers != IGNORED)
        answers = targets.flatten().index_select(0, sample.indices)
        wide = sample.scores.dtype
        with torch.no_grad(), torch.autocast(targets.device.type, enabled=False):
            logits = linear(self.norm(torch.stack(sample.ends).to(wide)), self.head.weight.to(wide))
            losses = F.cross_entropy(logits.flatten(0, 1), answers.repeat(len(logits)), reduction="none")
        return sample.router_loss(losses.view(len(logits), -1))

    def flops(self, time: int) -> float:
        """Floating-point operations per token of a forward pass over `time` tokens, counted learner by learner."""
        inner = sum(learner.flops(time) for learner in self.learners)
        routing = 0.0 if self.router is None else self.router.flops()
        confidence = 0.0 if self.confidence is None else self.confidence.flops()
        return inner + routing + confidence + 2.0 * self.spec.width * self.vocab

    def state_bytes(self, time: int = 1) -> int:
        """Bytes of one sequence's state after `time` tokens: its position, what every learner remembers, and the clock
        of each block that tokens may leave out (then these are the most that it may be)."""
        learners = sum(learner.state_bytes(time) for learner in self.learners)
        return self.init_state(1, device="meta").position.element_size() * (1 + len(self.routed)) + learners
