"""Decoding without an operator call a layer: all blocks of a model of attention, feed-forward learners and some
recurrent ones run in one call of C (see `ops.fused_decode`), for a token of each row."""

from __future__ import annotations

import ctypes
import hashlib
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.adapters.lora_linear import DEFAULT, LoRALinear
from synthe_core.inference.fused_buffers import StateBuffers
from synthe_core.inference.fused_maps import matrices_of
from synthe_core.inference.fused_recurrent import FORMS, begin
from synthe_core.inference.fused_residual import fill_residuals, residual_refusal
from synthe_core.inference.thread_choice import ThreadChoice, most_threads
from synthe_core.layers.adapter_batch import current_adapters
from synthe_core.layers.attention import Attention, AttentionState
from synthe_core.layers.growing_window import Place, extended
from synthe_core.layers.mlp import MLP
from synthe_core.layers.rope import rotary_angles
from synthe_core.model.block import Block
from synthe_core.model.language_model import Backbone, ModelState
from synthe_core.ops.fused_decode import (
    ACTIVATIONS,
    ATTENTION,
    KALMAN,
    RG_LRU,
    LinearMap,
    Step,
    decode,
    unavailable,
)
from synthe_core.ops.fused_decode import MLP as FUSED_MLP
from synthe_core.ops.low_rank import Change

SIGNALS = "surprise", "confidence"


class FusedDecoder:
    """`hidden(tokens, state)` of a model for one token a row. It holds the addresses of the model's weights and of the
    adapters that are attached: they must stay where they are.

    row_state_bytes: of the states of fixed size of one row, which each token of a pass over several writes.
    """

    def __init__(self, model: Backbone) -> None:
        """Of a model for which `refusal` has no reason."""
        self.model = model
        blocks: Any = model.blocks
        self._learners = [learner for block in blocks for learner in block.learners]
        maps = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
        self._slots = sorted({slot for module in maps.values() for slot in module.slots})
        self._rank = max((m.low_rank(slot).r for m in maps.values() for slot in m.slots), default=0)
        recurrent: list[Any] = [each for each in self._learners if type(each) in FORMS]
        self.row_state_bytes = sum(each.state_bytes(1) for each in recurrent)
        self._steps = (Step * len(self._learners))()
        self._buffers = StateBuffers()
        self._held: list[Any] = []  # what C has the addresses of, besides parameters
        for step, learner in zip(self._steps, self._learners, strict=True):
            self._held += _fill(step, learner, self._slots)
        self._shapes = _shapes(self._steps)
        self._threads: dict[int, ThreadChoice] = {}
        residuals = iter(self._steps)
        for block in blocks:
            fill_residuals([next(residuals).residual for _ in block.steps], block)

    @torch.inference_mode()
    def hidden(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState, dict[str, Tensor]]:
        """The normalised output of the last block, [B, 1, D], after tokens int64 [B, 1], the state after them and the
        signals [B, 1] of the last learner that has some."""
        positions = state.position[:, None]
        x = self.model.embed(tokens, positions)[:, 0].contiguous()
        angles: dict[Any, tuple[Tensor, Tensor]] = {}
        places: list[Place | None] = []
        before = [each for block in state.blocks for each in block]
        steps = type(self._steps).from_buffer_copy(self._steps)  # passes of other threads have their own
        held: list[Tensor] = []
        signals = torch.empty(0)
        for number, (step, learner) in enumerate(zip(steps, self._learners, strict=True)):
            each = before[number]
            places.append(None)
            if (form := FORMS.get(type(learner))) is not None:
                before[number], leaves = begin(step, each, form.state, self._buffers)
                held += leaves
                if form.kind == KALMAN:
                    signals = torch.empty(len(x), 2)
                    held.append(signals)
                    step.signals = signals.data_ptr()
                if form.kind == RG_LRU:
                    step.rg_lru.positions = positions.data_ptr()
            elif isinstance(learner, Attention):
                place = places[-1] = extended(each.keys, each.values, learner.window)
                step.keys, step.values = place.keys.data_ptr(), place.values.data_ptr()
                step.capacity, step.start, step.past = place.keys.shape[1], place.start, place.past
                step.filled = each.filled.data_ptr()
                cos, sin = _angles(learner, positions, angles)
                step.cos, step.sin = cos.data_ptr(), sin.data_ptr()
        self.run(steps, x, self._adapters(len(x)))
        counts: dict[tuple[int, int], Tensor] = {}
        after = iter(_after(*each, counts) for each in zip(before, places, strict=True))
        blocks = [[next(after) for _ in block] for block in state.blocks]
        named = {name: signals[:, [column]] for column, name in enumerate(SIGNALS)} if signals.numel() else {}
        return self.model.norm(x)[:, None], ModelState(state.position + 1, blocks), named

    def run(self, steps: ctypes.Array[Step], x: Tensor, adapters: list[int], first: int = 0) -> None:
        """Steps of x [B, D] in place, of the learners from number `first` on, with their weights."""
        if self.model.offload is None:
            choice, begun = self.thread_choice(), time.perf_counter()
            decode(steps, x, adapters, self._rank, choice.threads(len(x)))
            if len(steps) == len(self._steps):
                choice.record(len(x), time.perf_counter() - begun)
            return
        shared = torch.empty(3, *x.shape)  # by learners side by side, and values
        for span in self.model.offload.spans(slice(first, first + len(steps))):
            part = (Step * (span.stop - span.start)).from_buffer(steps, (span.start - first) * ctypes.sizeof(Step))
            with self.model.offload.holding(span.start):
                decode(part, x, adapters, self._rank, shared=shared)

    def thread_choice(self) -> ThreadChoice:
        """Among the numbers of threads up to torch's."""
        most = most_threads()
        if most not in self._threads:
            self._threads[most] = ThreadChoice.of(self._shapes, most)
        return self._threads[most]

    def _adapters(self, rows: int) -> list[int]:
        """The number of each row's adapter, -1 for none."""
        batch = current_adapters()
        slots = (DEFAULT,) if batch is None else batch.indices
        numbers = [self._slots.index(slot) if slot in self._slots else -1 for slot in slots]
        return numbers * rows if len(numbers) == 1 else numbers


def refusal(model: Backbone) -> str | None:
    """Why the steps of a model cannot be fused, in words; None for one whose can."""
    blocks: Any = getattr(model, "blocks", None)
    if blocks is None or not all(isinstance(each, Block) for each in blocks):
        return "transformers runs this model"
    if (reason := unavailable(next(model.parameters()).device.type)) is not None:
        return reason
    if model.router is not None or model.without:
        return "tokens leave out blocks, or the model parts"
    for block in blocks:
        for reason in (residual_refusal(block), *map(_learner_refusal, block.learners)):
            if reason is not None:
                return reason
    return None


def _learner_refusal(learner: nn.Module) -> str | None:
    maps: Sequence[nn.Module | None]
    if type(learner) is Attention:
        if learner.config.when is not None:
            return "an attention has a condition"
        maps = learner.qkv, None, learner.out
    elif type(learner) is MLP:
        maps = _first_map(learner), None, learner.out
    elif (form := FORMS.get(type(learner))) is not None:
        if (reason := form.refusal(learner)) is not None:
            return reason
        maps = [*form.maps(learner), *form.others(learner)]
        of_maps = {id(each) for map in maps if map is not None for each in map.parameters()}
        if any(each.dtype != torch.float32 for each in learner.parameters() if id(each) not in of_maps):
            return "a recurrent learner's parameters are not float32"
    else:
        return f"a block has a {getattr(getattr(learner, 'config', None), 'type', 'learner')}"
    fit = all(matrices_of(each) is not None for each in maps if each is not None)
    return None if fit else "a map has weights that C does not multiply"


def _shapes(steps: ctypes.Array[Step]) -> str:
    """A digest of the kinds of learners, and of the shapes and formats of their maps."""
    maps = [
        (step.kind, step.room, *(each for map in (step.input, step.more, step.output) for each in _shape(map)))
        for step in steps
    ]
    return hashlib.sha256(repr(maps).encode()).hexdigest()[:12]


def _shape(map: LinearMap) -> tuple[int, ...]:
    formats = (number for part in map.parts[: map.count] for number in (part.packed.bits, part.stored))
    return map.inputs, map.outputs, *formats


def _changes(map: nn.Module, slots: Sequence[int], held: list[Any]) -> ctypes.Array[Change] | None:
    """What the adapter in each slot changes in a map; None if none of them changes it. held: takes the factors that had
    to be copied for that (see `Adapter.compact`)."""
    if not isinstance(map, LoRALinear):
        return None
    changes = (Change * len(slots))()
    for number, slot in enumerate(slots):
        if slot in map.slots:
            change = map.low_rank(slot)
            first, second = change.lora_A.detach().contiguous(), change.lora_B.detach().t().contiguous()
            held += [first, second]
            changes[number] = Change.of(first, second, change.scaling)
    return changes


def _first_map(learner: MLP) -> nn.Module:
    return learner.gate_up if learner.config.gated else learner.up


def _fill(step: Step, learner: Any, slots: Sequence[int]) -> list[Any]:
    """What of a step is the same in every pass; returns what it has the addresses of."""
    step.more_from = -1
    form = FORMS.get(type(learner))
    if form is not None:
        step.kind, maps = form.kind, form.maps(learner)
    elif isinstance(learner, Attention):
        step.kind, maps = ATTENTION, (learner.qkv, None, learner.out)
        _fill_attention(step, learner)
    else:
        step.kind, maps = FUSED_MLP, (_first_map(learner), None, learner.out)
        own = learner.config
        step.activation, step.is_gated, step.gate_scale = ACTIVATIONS[own.activation], own.gated, own.gate_scale
    held: list[Any] = []
    named: zip[tuple[str, Any]] = zip(("input", "more", "output"), maps, strict=True)
    for name, map in named:
        if map is not None:
            setattr(step, name, _linear_map(map, slots, held))
    if form is None:
        return held
    if others := [_linear_map(each, slots, held) for each in form.others(learner)]:
        step.maps = (LinearMap * len(others))(*others)
        held.append(step.maps)
    return held + form.fill(step, learner)


def _linear_map(map: Any, slots: Sequence[int], held: list[Any]) -> LinearMap:
    """A map as C has it. held: takes what its addresses are of."""
    parts = matrices_of(map)
    assert parts is not None
    changes = _changes(map, slots, held)
    held.append(changes)
    return LinearMap.of(parts, map.bias, changes)


def _fill_attention(step: Step, learner: Attention) -> None:
    own = learner.config
    step.heads, step.groups, step.size, step.turned = learner.heads, learner.groups, learner.size, learner.turned
    step.window, step.is_gated = learner.window, own.gate
    step.scale = learner.size**-0.5 if own.scale is None else own.scale
    step.cap, step.clip = own.logit_cap or 0.0, own.clip or 0.0
    step.norm_eps, step.norms_jointly = own.norm_eps if own.qk_norm else -1.0, own.qk_norm == "joint"
    if own.qk_norm in ("weighted", "joint"):
        step.q_norm, step.k_norm = learner.q_norm.data_ptr(), learner.k_norm.data_ptr()


def _angles(learner: Attention, positions: Tensor, made: dict[Any, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """cos and sin of the tokens' angles, made once for the learners that turn alike."""
    own = learner.config
    key = (learner.turned, own.rope, None if own.rope_scaling is None else own.rope_scaling.model_dump_json())
    if key not in made:
        made[key] = rotary_angles(positions, learner.turned, own.rope, own.rope_scaling, torch.float32)
    return made[key]


def _after(before: Any, place: Place | None, counts: dict[tuple[int, int], Tensor]) -> Any:
    """A learner's state after the pass. counts: how many entries are real, by those before and by the window."""
    if place is None:
        return before
    keys, values = place.windows()
    key = before.filled.data_ptr(), keys.shape[1]
    if key not in counts:
        counts[key] = (before.filled + 1).clamp_max(keys.shape[1])
    return AttentionState(keys, values, counts[key])
