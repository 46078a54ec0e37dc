"""A model that is ready to run: weights, tokenizer, adapters, context limit, and how its passes are computed."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.adapters.lora import Adapter
from synthe_core.adapters.lora_linear import DEFAULT, attach, detach, linear_maps, matrix_shape
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.inference import captured_decode, fused_decoder
from synthe_core.inference.captured_decode import CapturedDecoder, DecodeOutput
from synthe_core.inference.fused_decoder import FusedDecoder
from synthe_core.inference.generation_defaults import GenerationDefaults
from synthe_core.inference.scheduler_config import ALIGNMENT
from synthe_core.inference.speculation.proposer import Speculation
from synthe_core.inference.weights import FLOAT32, choose_weights, describe_weights
from synthe_core.layers.adapter_batch import NONE, AdapterBatch, use_adapters
from synthe_core.layers.learner import Learner
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.session import fingerprint
from synthe_core.offload.load import build_model
from synthe_core.offload.plan import TEXTS, MemoryPlan
from synthe_core.offload.speed import measure_speed
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.linear import products_are_batch_invariant
from synthe_core.storage.adapter_files import check_base
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.hub.snapshot import model_name


class ForwardOutput(NamedTuple):
    """One pass of a model: `hidden` [B, T, D], the head's input, the state after it, and `signals` [B, T], which the
    confidence head reads too."""

    hidden: Tensor
    state: Any
    signals: Mapping[str, Tensor]


class Fingerprints(NamedTuple):
    """What identifies a model with an adapter, or without. shape: `model.session.fingerprint`, written into a session's
    file. weights: a digest of all weights."""

    shape: str
    weights: str


@dataclass
class LoadedModel:
    """name: what requests call it. max_length: the largest number of tokens it can read, None for no limit.

    context: how its passes run. recommended: whether `defaults` are those of its generation_config.json.
    base_digests: those that an adapter of it may record. weights: the format of its matrices, `float32` or one in
    which they are multiplied by integers, and `weights_reason` why. speculation: how texts are drafted, None for not.
    early_exit_blocks: after how many blocks it was trained to predict too; None for the last one only.
    """

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    path: Path = Path()
    digest: str = ""
    created: int = 0
    adapters: dict[str, Adapter] = field(default_factory=dict)
    max_length: int | None = None
    base_digests: tuple[str, ...] = ()
    context: ExecutionContext = field(default_factory=ExecutionContext)
    recommended: bool = True
    weights: str = FLOAT32
    weights_reason: str = ""
    speculation: Speculation | None = None
    early_exit_blocks: int | None = None
    _decoder: FusedDecoder | None = field(default=None, init=False, repr=False)
    _refusal: tuple[str | None] | None = field(default=None, init=False, repr=False)
    _captured: CapturedDecoder | None = field(default=None, init=False, repr=False)
    _slots: dict[int, Adapter] = field(default_factory=dict, repr=False)
    _state_bytes: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _num_parameters: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._num_parameters = self.model.parameter_count()  # later, adapters that requests have used are attached

    @classmethod
    def load(cls, path: Path, name: str | None = None, device: torch.device | str = "cpu") -> LoadedModel:
        """The checkpoint, run folder or .synapse file at `path`, for a server."""
        return cls.from_checkpoint(Checkpoint.open(path), name or model_name(path), device)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        name: str,
        device: torch.device | str = "cpu",
        *,
        batch_invariant: bool = True,
        weights: str = FLOAT32,
        memory: int | None = None,
        texts: int = TEXTS,
    ) -> LoadedModel:
        """The model of an open checkpoint; weights: one of `inference.weights.WEIGHTS`. memory: the bytes that this
        process may take, with `texts` at once: layers for which there is no room are read in each pass (see
        `offload`)."""
        context = context_for_recipe(checkpoint.recipe, torch.device(device), batch_invariant=batch_invariant)
        choice = choose_weights(weights, checkpoint, context.device.type)
        tokenizer = checkpoint.tokenizer()
        with context.activate():
            model = build_model(checkpoint, choice.format, context.device, memory, texts)
        made = cls(
            name,
            model.eval().requires_grad_(False),
            tokenizer,
            checkpoint.path,
            checkpoint.digest,
            int(checkpoint.path.stat().st_mtime),
            max_length=_shorter(checkpoint.context, checkpoint.recipe.model.positions),
            base_digests=checkpoint.base_digests,
            context=context,
            weights=choice.format or FLOAT32,
            weights_reason=choice.reason,
            early_exit_blocks=checkpoint.recipe.early_exit_blocks,
        )
        if memory is not None:
            with made.activate():
                measure_speed(made.model, lambda tokens, state: made.forward(tokens, state).hidden)
        return made

    @property
    def vocab(self) -> int:
        return self.model.vocab

    @cached_property
    def device(self) -> torch.device:
        """Where it was loaded; looking at its parameters costs a fraction of a millisecond."""
        return next(self.model.parameters()).device

    @property
    def batch_invariant(self) -> bool:
        """Whether a sequence's numbers do not depend on the sequences beside it."""
        if self.speculation is not None and not self.has_exact_passes:
            return False  # how many tokens a pass has depends on what the others draft
        return self.context.batch_invariant and products_are_batch_invariant()

    def alignment(self, most: int) -> int:
        """A text that is cut at a multiple of this for two passes gives the bits of one pass; `most` where that is
        known of no smaller number. Of a model that transformers runs ALIGNMENT, though past some 160 keys its attention
        may give other last bits there."""
        learners = [each.alignment for each in self.model.modules() if isinstance(each, Learner)]
        numbers = [each for each in learners if each is not None]
        if len(numbers) < len(learners) or self.has_router:
            return most
        return min(math.lcm(ALIGNMENT, *numbers), most)

    @property
    def end_token_ids(self) -> frozenset[int]:
        """The tokens that end a text."""
        return self.tokenizer.ends

    @property
    def defaults(self) -> GenerationDefaults:
        """How answers are sampled where a request does not say. InputError if generation_config.json is invalid."""
        return GenerationDefaults.parse(self.tokenizer.sampling if self.recommended else {}, self.path)

    @property
    def has_router(self) -> bool:
        """Whether each token decides how many blocks it runs."""
        return getattr(self.model, "router", None) is not None

    @property
    def memory_plan(self) -> MemoryPlan | None:
        """What the memory is used for that was given to it; None without a limit."""
        return None if self.model.offload is None else self.model.offload.plan

    @property
    def memory_summary(self) -> str:
        """Which weights stay in memory, which are read in each pass, and how fast that is; "" without a limit."""
        return "" if self.model.offload is None else self.model.offload.summary

    @property
    def measured_speed(self) -> str:
        """What the passes have brought of a model whose weights are read in each; "" for others, and before the
        first."""
        return "" if self.model.offload is None or not self.model.offload.read_bytes else str(self.model.offload.times)

    @property
    def weights_summary(self) -> str:
        """The formats of quantised matrices, their size, and why they are used; "" for a model of floats."""
        return "" if self.weights == FLOAT32 else f"{describe_weights(self.model)}, {self.weights_reason}"

    def parameter_count(self, adapter: str | None = None) -> int:
        """Its parameters, with those of the adapter of that name, whichever adapters are attached."""
        factors = self.adapters[adapter].tensors.values() if adapter in self.adapters else ()
        return self._num_parameters + sum(factor.numel() for factor in factors)

    def fitting(self, count: int, read: int) -> int:
        """`count` tokens, or as many as it can generate after `read` ones; if there is no room for any, `count`, for
        which a request is refused."""
        room = count if self.max_length is None else self.max_length - read
        return min(count, room) if room > 0 else count

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state after `length` tokens. Every request needs it, and counting takes a state."""
        length = max(1, length)
        if (known := self._state_bytes.get(length)) is None:
            known = self._state_bytes[length] = self.model.state_bytes(length)
        return known

    @contextmanager
    def activate(self, adapter: Adapter | None = None) -> Iterator[None]:
        """Within the block passes run in the model's context, with `adapter` for every row (None: without one) unless
        a pass says which each row has."""
        with use_adapters(self.adapter_batch([adapter])), self.context.activate():
            yield

    def adapter_batch(self, adapters: Iterable[Adapter | None]) -> AdapterBatch:
        """A pass's rows by their adapters, for `use_adapters`. Attaches what is not attached: not during a pass."""
        return AdapterBatch(tuple(NONE if adapter is None else self._slot(adapter) for adapter in adapters))

    def _slot(self, adapter: Adapter) -> int:
        for slot, each in self._slots.items():
            if each is adapter:
                return slot
        slot = next(slot for slot in count(DEFAULT + 1) if slot not in self._slots)
        attach(self.model, adapter, slot=slot)
        self._slots[slot] = adapter
        self._decoder = self._refusal = self._captured = None  # the maps are others
        return slot

    def detach_unused(self, used: Iterable[Adapter]) -> None:
        """Detaches the adapters that are neither available nor `used`: not during a pass."""
        available = {id(adapter) for adapter in self.adapters.values()}
        unloaded = {slot: adapter for slot, adapter in self._slots.items() if id(adapter) not in available}
        needed = {id(adapter) for adapter in used} if unloaded else set()
        for slot, adapter in unloaded.items():
            if id(adapter) not in needed:
                detach(self.model, slot)
                del self._slots[slot]
                self._decoder = self._refusal = self._captured = None

    def fingerprints(self, adapter: Adapter | None) -> Fingerprints:
        """What identifies states of the model with `adapter`. Attaches it: not to be called during a pass."""
        with self.activate(adapter):
            shape = fingerprint(self.model)
        arithmetic = "" if self.weights == FLOAT32 else f" {self.weights}"
        digest = hashlib.sha256(f"{shape} {self.digest}{arithmetic}".encode())
        for name, change in sorted(adapter.maps.items()) if adapter is not None else ():
            digest.update(f"{name} {change.scaling!r} {change.r}".encode())
            for factor in (change.lora_A, change.lora_B):
                digest.update(factor.detach().cpu().float().contiguous().numpy().tobytes())
        return Fingerprints(shape, digest.hexdigest()[:16])

    def forward(self, tokens: Tensor, state: Any, lengths: Tensor | None = None) -> ForwardOutput:
        """Reads `tokens` int64 [B, T], right-padded where `lengths` [B] is given, from `state` (None: a fresh one)."""
        if state is not None and lengths is None and tokens.shape[1] == 1 and self.fused_refusal is None:
            return ForwardOutput(*self.fused_decoder().hidden(tokens, state))
        hidden, after, ctx = self.model.hidden(tokens, state, lengths)
        return ForwardOutput(hidden, after, ctx.signals)

    def captured_step(self, tokens: Tensor, state: Any) -> DecodeOutput | None:
        """One more token of every row of a batch by a captured step, which overwrites the state that it returned
        before; None where the model has no such step, see `captured_decode.refusal`."""
        if self._slots or self.speculation is not None or self.device.type not in captured_decode.CAPTURES:
            return None
        if self._captured is None:
            if captured_decode.refusal(self.model) is not None:
                return None
            self._captured = CapturedDecoder(self.model, captured_decode.CAPTURES[self.device.type])
        return self._captured(tokens, state)

    @property
    def fused_refusal(self) -> str | None:
        """Why passes of one token a row are computed operator by operator; None if they are not."""
        if self.context.kernels or self.context.precision != "float32":
            return "the recipe chooses kernels, or another precision than float32"
        if self._refusal is None:
            self._refusal = (fused_decoder.refusal(self.model),)
        return self._refusal[0]

    @property
    def has_exact_passes(self) -> bool:
        """Whether several tokens of a sequence can be read in one pass with the numbers of single ones, to the bit."""
        return self.fused_refusal is None

    def fused_decoder(self) -> FusedDecoder:
        """Where `fused_refusal` has no reason: what computes passes of one token a row."""
        if self._decoder is None:
            self._decoder = FusedDecoder(self.model)
        return self._decoder

    def decode_threads(self, num_tokens: int) -> int | None:
        """How many threads what belongs to a pass of so many tokens should have; None for torch's number."""
        return self.fused_decoder().thread_choice().settled(num_tokens) if self.fused_refusal is None else None

    def with_network(self, network: LanguageModel) -> LoadedModel:
        """The same model with another network, some of its own blocks for example: adapters are those of this one."""
        other = copy.copy(self)
        other.model, other.speculation, other._state_bytes = network, None, {}
        other._decoder = other._refusal = other._captured = None
        return other

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits [..., V] from the head's input [..., D]."""
        return self.model.head(hidden).float()

    def confidence(self, hidden: Tensor, signals: Mapping[str, Tensor], max_logprob: Tensor) -> Tensor:
        """The probability [B, T] that the likeliest token is right, given its log-probability `max_logprob` [B, T]."""
        if self.model.confidence is None or "confidence" in self.model.without:
            return max_logprob.exp()
        return sigmoid(self.model.confidence(hidden, signals, max_logprob))

    def read_adapter(self, path: Path) -> Adapter:
        """The adapter at `path`, a checkpoint or a folder of PEFT's; see `check_adapter` and `compact_adapter`."""
        opened = Checkpoint.open(path, base=self.path)
        adapter, recorded = opened.fitted_adapter, opened.manifest.base
        assert adapter is not None
        check_base(path, recorded.sha256 if recorded else None, self.base_digests or (self.digest,), self.name)
        return self.compact_adapter(adapter)

    def compact_adapter(self, adapter: Adapter) -> Adapter:
        """The adapter as it is held for this model: in bfloat16 where the matrices are not in float32."""
        return adapter.compact(torch.float32 if self.weights == FLOAT32 else torch.bfloat16)

    def check_adapter(self, adapter: Adapter, path: Path) -> None:
        """InputError if the adapter read from `path` is of another model. Not during a pass."""
        maps = linear_maps(self.model)
        for each in adapter.maps:
            adapter.check(each, matrix_shape(maps[each]) if each in maps else None, path)

    def load_adapter(self, name: str, path: Path) -> None:
        """Loads the adapter at `path`; InputError if it is of another model."""
        if name in self.adapters:
            raise InputError(f"{self.name} has an adapter '{name}' already", "unload it first, or choose another name")
        adapter = self.read_adapter(path)
        self.check_adapter(adapter, path)
        self.adapters[name] = adapter


def _shorter(*limits: int | None) -> int | None:
    """The least of the limits that there are."""
    return min((limit for limit in limits if limit is not None), default=None)
