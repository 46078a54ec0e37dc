"""A language model: embedding, blocks of learners, norm, head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from synthe_core.errors import InputError, unknown
from synthe_core.hardware.execution import ExecutionContext, active_context, running_in
from synthe_core.hardware.sequence import Exchanges
from synthe_core.layers.adapter_batch import AdapterBatch, current_adapters, use_adapters
from synthe_core.layers.learner import Learner, Pass
from synthe_core.layers.trace import Trace
from synthe_core.model.block import NORMS, Block, OpaquePass, pass_of
from synthe_core.model.confidence import ConfidenceHead
from synthe_core.model.depth import Choice, ExplorationSample, Router
from synthe_core.model.early_exit import EarlyExitLoss
from synthe_core.model.head import Head
from synthe_core.model.parts import parts, without_parts
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.cross_entropy import IGNORED, TopPrediction
from synthe_core.quantization.matrix import count_parameters
from synthe_core.state import map_leaves

EMBEDDING_STD = 0.02


class ModelState(NamedTuple):
    """The state of a model: how many tokens each row has seen, int64 [B], and every learner's state."""

    position: Tensor
    blocks: list[list[Any]]


class Mean(NamedTuple):
    """A mean, in parts: the `total` of values and their `weight`, how many they are; 0-dim, no gradient."""

    total: Tensor
    weight: Tensor | int

    @classmethod
    def of(cls, values: Tensor, where: Tensor | None = None) -> Mean:
        """Of the values of a tensor, or of those `where` a mask is true."""
        values = values.detach()
        if where is None:
            return cls(values.sum(), values.numel())
        return cls(torch.where(where, values, 0.0).sum(), where.sum())

    def __add__(self, other: Mean) -> Mean:  # type: ignore[override]
        return Mean(self.total + other.total, self.weight + other.weight)


class Loss(NamedTuple):
    """`total` nats over `scored` tokens (differentiable), `auxiliary` losses, and `each` token's loss [B, T], with a
    gradient where `per_token` asks for it.

    measures: figures of the pass, the mean of each name over the learners that measure it; 0-dim, no gradient.
    skipped: floating-point operations that learners left out of the pass, of those that `flops` states; 0-dim or 0.0.
    buffer_updates: buffers and their values after the step, for `apply_buffer_updates`.
    state: the recurrent state after the batch, where an objective carries it.
    means: an objective's own figures by name.
    """

    total: Tensor
    scored: Tensor
    auxiliary: dict[str, Tensor]
    each: Tensor
    measures: dict[str, Tensor]
    skipped: Tensor | float
    buffer_updates: Sequence[tuple[Tensor, Tensor]] = ()
    state: ModelState | None = None
    means: Mapping[str, Mean] = MappingProxyType({})

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
    `without` names the parts that passes leave out (see `leave_out`). `offload` says which learners' weights are read
    from files in each pass (`offload.model.Offload`), None for none.
    """

    offload: Any = None

    def __init__(self, spec: ModelSpec, vocab: int, recompute: bool = False) -> None:
        super().__init__()
        self.spec, self.vocab, self.recompute = spec, vocab, recompute
        self.without: frozenset[str] = frozenset()
        self._excluded_paths: frozenset[str] = frozenset()
        self.embedding = nn.Embedding(vocab, spec.width)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.positions = None if spec.positions is None else nn.Embedding(spec.positions, spec.width)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=EMBEDDING_STD)
        learners = (spec.learners_of(index) for index in range(spec.blocks))
        self.blocks = nn.ModuleList(Block(each, spec.width, spec.norm_eps, spec.norm) for each in learners)
        self.norm = NORMS[spec.norm](spec.width, spec.norm_eps)
        self.router = None if spec.depth is None else Router(spec.depth, spec.width, spec.blocks, spec.norm_eps)

    def init_state(self, batch: int, *, device: Any = None) -> ModelState:
        """The state of `batch` sequences that have not begun."""
        device = next(self.parameters()).device if device is None else device
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

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the first block reads, [B, T, D], of tokens int64 [B, T] at their `positions` in the text. Rows of the
        embedding [B, T, D] may be given for the tokens."""
        x = tokens if tokens.is_floating_point() else self.embedding(tokens)
        if self.spec.embed_norm:  # a unit-scale stream, whatever scale the shared embedding needs as a head
            x = F.rms_norm(x, (self.spec.width,), eps=self.spec.norm_eps)
        if self.spec.embedding_scale != 1.0:
            x = x * self.spec.embedding_scale
        if self.positions is not None:  # texts end before the last one; what is left are rows of padding
            x = x + self.positions(positions.clamp_max(self.positions.num_embeddings - 1))
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
            step = partial(cast(Block, block).routed, choices[index]) if index in choices else block
            sample = ctx.exploration if index in choices else None
            if sample is not None:
                sample.record(x)
            ctx.path = f"blocks.{index}"
            given = OpaquePass(ctx) if block.sharded else ctx
            if self.recompute and torch.is_grad_enabled():
                before = Given(
                    dict(ctx.signals), dict(ctx.shared), current_adapters(), active_context(), ctx.path, Exchanges()
                )
                again = partial(_recompute, before, step)
                x, remembered = checkpoint(again, x, remembered, given, use_reentrant=False)
            else:
                x, remembered = step(x, remembered, given)
            if x.shape[1] > 1 and (self.recompute or not torch.is_grad_enabled()):
                remembered = map_leaves(_without_rest, remembered)
            if sample is not None:
                sample.record(x)
            after.append(remembered)
            if index + 1 == ctx.exit_after:
                ctx.exit_hidden = self.norm(x)
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
        """Distinct parameters, quantised ones too; a shared embedding counts once."""
        return count_parameters(self)

    def active_parameter_count(self) -> int:
        """The parameters that one token uses: without the experts that it is not routed to."""
        idle = sum(count_parameters(each) - each.active_parameters() for each in self.learners)
        return self.parameter_count() - idle


def _without_rest(leaf: Tensor) -> Tensor:
    """A tensor without the rest of the storage that it is a view of, where nothing else holds that."""
    return leaf.clone() if leaf.nbytes < leaf.untyped_storage().nbytes() else leaf


class Given(NamedTuple):
    """What a block reads besides its arguments, which it must read again where it runs again."""

    signals: dict[str, Tensor]
    shared: dict[str, Tensor]
    adapters: AdapterBatch | None
    context: ExecutionContext
    path: str
    exchanges: Exchanges


def _recompute(given: Given, block: Callable[..., Any], x: Tensor, states: list[Any], ctx: Pass | OpaquePass) -> Any:
    """A block that may run twice: the second time too, on whichever thread computes the gradient, it reads the signals
    and shared tensors of earlier blocks, not of later ones, and has the adapters and the context of its pass."""
    own = pass_of(ctx)
    own.signals, own.shared, own.path = dict(given.signals), dict(given.shared), given.path
    ranks = given.context.sequence
    exchanges = nullcontext() if ranks is None else ranks.recorded(given.exchanges)
    with use_adapters(given.adapters), running_in(given.context), exchanges:
        return block(x, states, ctx)


class LanguageModel(Backbone):
    """Next-token model over `vocab` tokens. One forward for every T: decoding is T = 1, prefill any T."""

    def __init__(self, spec: ModelSpec, vocab: int, recompute: bool = False) -> None:
        if spec.head is not None:
            raise InputError("this recipe is of an encoder, which is no language model", "leave out model.head")
        super().__init__(spec, vocab, recompute)
        self.head = Head(spec.width, vocab, spec.logit_scale, spec.logit_cap, spec.head_bias)
        if spec.tie:
            self.head.weight = self.embedding.weight
        else:
            nn.init.zeros_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)
        self.confidence = None  # initialised last, so that all other initial values are the same with and without it
        if spec.confidence is not None:
            self.confidence = ConfidenceHead(spec.confidence, spec.width, spec.published)

    def hidden(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        lengths: Tensor | None = None,
        trace: Trace | None = None,
        exit_after: int | None = None,
    ) -> tuple[Tensor, ModelState, Pass]:
        """The normalised output of the last block, [B, T, D], before the head. Rows of the embedding [B, T, D] may be
        given for the tokens. exit_after: that of so many blocks is wanted too (`Pass.exit_hidden`)."""
        ranks = active_context().sequence
        before = 0 if ranks is None else ranks.rank * tokens.shape[1]  # tokens of the ranks before
        start = before if state is None else None
        state = state or self.init_state(tokens.shape[0])
        position = state.position + before
        ctx = Pass.over(tokens, lengths, position, trace)
        ctx.start, ctx.exit_after = start, exit_after
        hidden, after = self.run(self.embed(tokens, ctx.positions), state.blocks, ctx)
        seen = tokens.shape[1] if lengths is None else lengths
        return hidden, ModelState(position + seen, after), ctx

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
        self,
        tokens: Tensor,
        targets: Tensor,
        state: ModelState | None = None,
        lengths: Tensor | None = None,
        per_token: bool = False,
        early_exit: EarlyExitLoss | None = None,
    ) -> tuple[Loss, ModelState]:
        """Cross-entropy of `targets` int64 [B, T] (-100 = not scored) given the tokens up to each. `per_token`: the
        loss of each token, too, carries a gradient. early_exit: its loss is one of the auxiliary ones."""
        exit_after = None if early_exit is None else early_exit.blocks
        hidden, after, ctx = self.hidden(tokens, state, lengths, exit_after=exit_after)
        confident = self.confidence is not None and "confidence" not in ctx.without
        total, each, top = self.head.cross_entropy(hidden, targets, confident, per_token)
        scored, logged = (targets != IGNORED).sum(), measures(ctx)
        losses = self.auxiliary_losses(hidden, ctx, targets, top)
        if early_exit is not None:
            assert ctx.exit_hidden is not None
            own = self.head.cross_entropy(ctx.exit_hidden, targets, False, False)[0]
            losses["early_exit"] = early_exit.weight * own / scored.clamp_min(1)
        if self.confidence is not None and not confident:
            ctx.skip_flops(self.confidence.flops())
        return Loss(total, scored, losses, each, logged, sum(ctx.skipped), tuple(ctx.buffer_updates)), after

    def auxiliary_losses(
        self, hidden: Tensor, ctx: Pass, targets: Tensor, top: TopPrediction | None
    ) -> dict[str, Tensor]:
        """The losses beside the cross-entropy, by name: of the learners, of the confidence head where `top` is given,
        and of the depth router."""
        losses = auxiliary(ctx)
        if self.confidence is not None and top is not None:
            losses["confidence"] = self.confidence.loss(hidden, ctx.signals, top, targets != IGNORED)
        if ctx.exploration is not None and torch.is_grad_enabled():
            losses["depth"] = self._router_loss(ctx.exploration, targets)
        return losses

    def _router_loss(self, sample: ExplorationSample, targets: Tensor) -> Tensor:
        """The router's loss: how well its scores predict the blocks' gain at the tokens that ran all of them."""
        answers = targets.flatten().index_select(0, sample.indices)
        sample = sample.only(answers != IGNORED)
        answers = targets.flatten().index_select(0, sample.indices)
        wide = sample.scores.dtype
        with torch.no_grad(), torch.autocast(targets.device.type, enabled=False):
            logits = self.head.in_dtype(self.norm(torch.stack(sample.ends).to(wide)), wide)
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
