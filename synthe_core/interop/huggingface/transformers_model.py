"""A causal language model of transformers behind the interface of our own: state in, state out."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from synthe_core import state as states
from synthe_core.adapters.lora_linear import lora_linears
from synthe_core.errors import InputError
from synthe_core.interop.huggingface.cache_state import ARGUMENTS, CacheForm, LayerCache, cache_form, initial_blocks
from synthe_core.interop.huggingface.pretrained import library, load_tensors, published_tensors, quiet
from synthe_core.interop.huggingface.transformers_trial import OTHERS, Reading, check
from synthe_core.layers.adapter_batch import current_adapters, per_adapter, select_rows
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace
from synthe_core.model.head_chunks import logits_in_chunks, places_per_chunk
from synthe_core.model.language_model import LanguageModel, Loss, ModelState
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.ops.cross_entropy import IGNORED

MODULE = {
    "buffers", "children", "modules", "named_buffers", "named_children", "named_modules", "named_parameters",
    "parameters", "state_dict", "zero_grad",
}  # fmt: skip
"""The methods of a module that are those of the model of transformers."""


class Measured(NamedTuple):
    """What reading one token shows: the form of the cache, one row's tensors before its first token, which kinds there
    are of them, and the head."""

    form: CacheForm
    initial: list[list[Any]]
    has_windows: bool
    is_recurrent: bool
    head: Any


class TransformersModel:
    """A causal language model of transformers with an explicit state: the interface of a `LanguageModel`. Its modules,
    parameters and buffers have the names of transformers.

    Its state is the tree of its cache's tensors (see `cache_state`). Keys and values grow with every token, up to
    `limit` of them; the engine refuses longer texts, and in a longer text the oldest tokens are dropped. A model whose
    tensors are all recurrent has no `limit`.

    Padding would change recurrent tensors: the rows of a pass are then read in groups of equal length, without any.
    InputError for a model without a cache that it takes and returns. `transformers_trial.check` sets `reading`.
    """

    reading = Reading()

    confidence = None
    router = None
    offload = None
    without: frozenset[str] = frozenset()
    signals: tuple[str, ...] = ()

    def __init__(self, inner: Any, spec: PublishedSpec | None = None) -> None:
        self.inner = inner
        self.base: Any = getattr(inner, inner.base_model_prefix, None)
        self._known = set() if self.base is None else set(inspect.signature(self.base.forward).parameters)
        self.name = type(inner).__name__
        argument = next((name for name in ARGUMENTS if name in self._known), None)
        if argument is None or "use_cache" not in self._known:
            raise InputError(f"{self.name} cannot run: it takes no cache", OTHERS)
        self._argument = argument
        config = inner.config.get_text_config()
        self.vocab = int(config.vocab_size)
        self.embedding = inner.get_input_embeddings()
        self.spec = spec or PublishedSpec(config=json.loads(inner.config.to_json_string(use_diff=False)))
        limit = getattr(config, "max_position_embeddings", None)
        self.limit = limit if isinstance(limit, int) and limit > 0 else None
        if getattr(config, "rescale_every", 0):  # RWKV halves activations for float16's range, and so its weights
            config.rescale_every = 0

    def init_state(self, batch: int, *, device: torch.device | str | None = None) -> ModelState:
        """The initial state of `batch` texts."""
        device = self.embedding.weight.device if device is None else device

        def spread(leaf: Tensor) -> Tensor:
            return torch.zeros(batch, *leaf.shape[1:], dtype=leaf.dtype, device=device)

        position = torch.zeros(batch, dtype=torch.int64, device=device)
        return ModelState(position, states.map_leaves(spread, self._measured.initial))

    def state_bytes(self, time: int = 1) -> int:
        """Bytes of one text's state after `time` tokens."""
        total, time = 8, time if self.limit is None else min(time, self.limit)
        for block, parts in enumerate(self._measured.initial):
            for part in parts:
                bound = self.form.window_bound(block)
                length = time if bound is None else min(time, bound)
                for _, leaf in states.named_leaves(part):
                    numbers = length * leaf[:, :0].shape[2:].numel() if isinstance(part, LayerCache) else leaf.numel()
                    total += numbers * leaf.element_size()
        return total

    @torch.inference_mode()
    def hidden(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None, trace: Trace | None = None
    ) -> tuple[Tensor, ModelState, Pass]:
        """The normalised output of the last block, [B, T, D], before the head. Nothing is traced.

        An architecture may call its maps with any shape: rows with different adapters are computed apart.
        """
        state = state or self.init_state(tokens.shape[0])
        ctx = Pass.over(tokens, lengths, state.position, trace)
        inputs = (tokens, state) if lengths is None else (tokens, state, lengths)
        batch = current_adapters()
        apart = batch is not None and len(set(batch.indices)) > 1
        hidden, after = per_adapter(lora_linears(self.inner).values() if apart else (), self._hidden, *inputs)
        return hidden, after, ctx

    def _hidden(self, tokens: Tensor, state: ModelState, lengths: Tensor | None = None) -> tuple[Tensor, ModelState]:
        """The pass of rows with one adapter."""
        if self.reading.batches and not self._measured.is_recurrent:
            return self._pass(tokens, state, lengths)
        time = tokens.shape[1]
        each = [time] * len(tokens) if lengths is None else lengths.tolist()
        groups = self._groups(each, (state.position == 0).tolist())
        if len(groups) == 1 and each[0] == time:
            return self._read(tokens, state)
        hidden, parts = None, []
        for group in groups:
            rows, length = torch.tensor(group, device=tokens.device), each[group[0]]
            part = states.take(state, rows)
            if length:
                with select_rows(group):
                    read, part = self._read(tokens[rows, :length], part)
                if hidden is None:
                    hidden = read.new_zeros(len(tokens), time, read.shape[-1])
                hidden[rows, :length] = read
            parts.append(part)
        assert hidden is not None, "a pass reads a token at least"
        order = torch.tensor([row for group in groups for row in group], device=tokens.device)
        return hidden, states.take(states.join(parts), order.argsort())

    def _groups(self, lengths: list[int], begins: list[bool]) -> list[list[int]]:
        """The rows that are read together without padding: as many tokens of each, and all from their beginning or
        none."""
        if not self.reading.batches:
            return [[row] for row in range(len(lengths))]
        keys = list(zip(lengths, begins, strict=True))
        return [[row for row, key in enumerate(keys) if key == kind] for kind in sorted(set(keys))]

    def _read(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Reads rows without padding, all from their beginning or none, in as many passes as the model needs."""
        if self.reading.pieces or tokens.shape[1] == 1 or not bool(state.position.any()):
            return self._pass(tokens, state, None)
        hidden = []
        for token in tokens.split(1, 1):
            one, state = self._pass(token, state, None)
            hidden.append(one)
        return torch.cat(hidden, 1), state

    def _pass(self, tokens: Tensor, state: ModelState, lengths: Tensor | None) -> tuple[Tensor, ModelState]:
        """One call of the model, with padding in front of the windows of shorter rows, and behind by `lengths`."""
        ctx = Pass.over(tokens, lengths, state.position)
        most, past = self.limit, int(state.position.max())
        position = state.position + (tokens.shape[1] if lengths is None else lengths)
        position = position if most is None else position.clamp_max(most)
        inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": True}
        if self._measured.has_windows:
            real = torch.arange(past, 0, -1, device=tokens.device) <= state.position[:, None]
            now = torch.ones_like(tokens, dtype=torch.bool) if ctx.mask is None else ctx.mask
            mask = torch.cat([real, now], 1)
            inputs["attention_mask"] = None if bool(mask.all()) else mask.long()
        # padding may lie past the end
        inputs["position_ids"] = ctx.positions if most is None else ctx.positions.clamp_max(most - 1)
        cut = [[_newest(part, past) for part in parts] for parts in state.blocks]
        inputs[self.form.argument] = self.form.restore(cut, past) if past else self.form.fresh()
        outputs = self.base(**{name: value for name, value in inputs.items() if name in self._known})
        stored = min(past + tokens.shape[1], int(position.max()))
        after = [
            [self._stored(part, ctx, block, stored) for part in parts]
            for block, parts in enumerate(self.form.read(self._cache_of(outputs, inputs)))
        ]
        return outputs.last_hidden_state, ModelState(position, after)

    def _cache_of(self, outputs: Any, inputs: dict[str, Any]) -> Any:
        """The cache after a pass: what it returned, or what it was given and wrote to."""
        cache = outputs.get(self.form.argument)
        return inputs[self.form.argument] if cache is None else cache

    def _stored(self, part: Any, ctx: Pass, block: int, stored: int) -> Any:
        """What the state keeps of a layer's cache after a pass."""
        if not isinstance(part, LayerCache):
            return part
        bound = self.form.window_bound(block)
        if bound is None or stored <= bound:
            return LayerCache(*(ctx.last(tensor, stored) for tensor in part))
        return LayerCache(*(ctx.last(tensor, bound).clone() for tensor in part))  # a view would keep the whole

    def __call__(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None, trace: Trace | None = None
    ) -> tuple[Tensor, ModelState]:
        """Logits [B, T, V] of the token after each of `tokens` int64 [B, T], and the state after them."""
        hidden, after, _ = self.hidden(tokens, state, lengths, trace)
        return self.head(hidden), after

    def next_logits(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """Logits [B, V] after the last real token only."""
        hidden, after, ctx = self.hidden(tokens, state, lengths)
        return self.head(ctx.last(hidden, 1))[:, 0], after

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: ModelState | None = None,
        lengths: Tensor | None = None,
        per_token: bool = False,
    ) -> tuple[Loss, ModelState]:
        """Cross-entropy of `targets` int64 [B, T] (-100 = not scored) given the tokens up to each; with `per_token`
        each carries a gradient. Where gradients are recorded, texts begin with `tokens`, and the state after them is
        the initial one."""
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            assert state is None, "a recipe that carries a state is refused"
            return self._training_loss(tokens, targets, per_token), self.init_state(len(tokens))
        with torch.inference_mode():
            hidden, after, _ = self.hidden(tokens, state, lengths)
            chunks = logits_in_chunks(cast(LanguageModel, self), hidden, targets)
            each = torch.cat([_cross_entropy(logits, part) for logits, part in chunks], 1)
        return Loss(each.sum(), (targets != IGNORED).sum(), {}, each, {}, 0.0), after

    def _training_loss(self, tokens: Tensor, targets: Tensor, per_token: bool) -> Loss:
        """The loss with its gradient, without a cache. Logits are computed again in the backward pass."""
        cached = tokens.is_meta and self._measured.has_windows  # else it looks at positions, which have no storage
        with quiet(library(self.name)):
            hidden = self.base(input_ids=tokens, use_cache=cached).last_hidden_state

        def chunk(part: Tensor, answers: Tensor) -> Tensor:
            return _cross_entropy(self.head(part).float(), answers)

        size = places_per_chunk(cast(LanguageModel, self), len(tokens))
        parts = zip(hidden.split(size, 1), targets.split(size, 1), strict=True)
        each = torch.cat([checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts], 1)
        each_loss = each if per_token else each.detach()
        return Loss(each.sum(), (targets != IGNORED).sum(), {}, each_loss, {}, 0.0)

    def __getattr__(self, name: str) -> Any:
        """Modules, parameters, buffers and the like are those of the model of transformers."""
        if name in MODULE:
            return getattr(self.inner, name)
        raise AttributeError(name)

    def to(self, *args: Any, **kwargs: Any) -> TransformersModel:
        self.inner.to(*args, **kwargs)
        return self

    def train(self, mode: bool = True) -> TransformersModel:
        self.inner.train(mode)
        return self

    def eval(self) -> TransformersModel:
        return self.train(False)

    def requires_grad_(self, required: bool = True) -> TransformersModel:
        self.inner.requires_grad_(required)
        return self

    def leave_out(self, names: Collection[str]) -> None:
        """It has no parts that could be left out: a recipe that names one is refused."""
        assert not names

    def published_tensors(self) -> dict[str, Tensor]:
        """Its tensors as transformers saves them."""
        return published_tensors(self.inner)

    def load_published(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Takes the values of published tensors, and finds out how it reads texts. InputError for a tensor that is
        missing or does not fit, and for a model that fails its trial."""
        load_tensors(self.inner, self.spec.config, tensors, source)
        training = self.inner.training
        check(self.eval())
        self.train(training)

    @property
    def blocks(self) -> nn.Module:
        """Its layers: the longest list of modules in it."""
        lists = [each for each in self.inner.modules() if isinstance(each, nn.ModuleList)]
        return max(lists, key=len, default=self.base)

    def flops(self, time: int) -> float:
        """Floating-point operations per token: two for each entry of a matrix that is not an embedding alone. What
        attention reads of the text is not counted."""
        tied = self.inner.get_output_embeddings().weight is self.embedding.weight
        matrices = sum(each.numel() for each in self.parameters() if each.dim() >= 2)
        return 2.0 * (matrices if tied else matrices - self.embedding.weight.numel())

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def active_parameter_count(self) -> int:
        """All of them: which experts a token uses is not known here."""
        return self.parameter_count()

    @property
    def recompute(self) -> bool:
        """Whether layers store their inputs only and run again in the backward pass."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    @recompute.setter
    def recompute(self, enabled: bool) -> None:
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = enabled

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its embedding, in which it computes."""
        return cast(torch.dtype, self.embedding.weight.dtype)

    @property
    def form(self) -> CacheForm:
        return self._measured.form

    @property
    def head(self) -> Any:
        """The function from hidden [B, ..., D] to logits [B, ..., V]."""
        return self._measured.head

    @cached_property
    def _measured(self) -> Measured:
        """What reading one token shows of the cache. InputError for a model without one that it takes and returns."""
        try:
            with quiet(library(self.name)):
                measured = self._measure()
        except InputError as error:
            raise InputError(f"{self.name} cannot run: {error.message}", OTHERS) from None
        except Exception as error:  # an architecture may raise anything for these arguments
            raise InputError(f"{self.name} cannot run: {' '.join(str(error).split())[:200]}", OTHERS) from error
        if measured.has_windows and self.limit is None:
            raise InputError(
                f"{self.name} cannot run: its config.json does not limit the length of a text",
                "put in its max_position_embeddings, in tokens",
            )
        return measured

    @torch.no_grad()
    def _measure(self) -> Measured:
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.embedding.weight.device)
        outputs = self.base(input_ids=token, use_cache=True)
        form = cache_form(outputs, self._argument, self.inner.config.get_text_config())
        initial = initial_blocks(form.read(outputs[self._argument]))
        windows = [isinstance(part, LayerCache) for parts in initial for part in parts]
        return Measured(form, initial, any(windows), not all(windows), _head(self.inner, self.base, type(outputs)))


class _Identity(nn.Module):
    """Replaces the blocks: returns its input in the type of their output. Its other attributes are theirs."""

    def __init__(self, base: nn.Module, form: type[Any]) -> None:
        super().__init__()
        self.form, self.bases = form, (base,)  # in a tuple: not a module inside this one

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bases[0], name)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return self.form(last_hidden_state=inputs_embeds)


def _head(inner: Any, base: nn.Module, form: type[Any]) -> Any:
    """The function from hidden [B, ..., D] to logits [B, ..., V]: the architecture's own code without its blocks. Its
    matrices are the model's, with the adapters attached at the time of the call."""
    bare, identity = copy.copy(inner), _Identity(base, form)

    def head(hidden: Tensor) -> Tensor:
        bare._modules = dict(inner._modules) | {inner.base_model_prefix: identity}
        rows = hidden.reshape(len(hidden), -1, hidden.shape[-1])
        return bare(inputs_embeds=rows, use_cache=False).logits.view(*hidden.shape[:-1], -1)

    return head


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p [B, T] of the targets, 0 where they are not scored."""
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def _newest(part: Any, count: int) -> Any:
    """The newest `count` tokens of a window; what is older is padding. A recurrent part is itself."""
    if not isinstance(part, LayerCache):
        return part
    return LayerCache(*(tensor[:, max(0, tensor.shape[1] - count) :] for tensor in part))
