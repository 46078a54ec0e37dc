"""A causal language model of transformers behind the interface of our own: state in, state out."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthe_core import state as states
from synthe_core.adapters.lora_linear import lora_linears
from synthe_core.errors import InputError
from synthe_core.interop.huggingface.cache_state import ARGUMENTS, CacheForm, LayerCache, cache_form, initial_blocks
from synthe_core.layers.adapter_batch import current_adapters, per_adapter, select_rows
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace
from synthe_core.model.head_chunks import logits_in_chunks
from synthe_core.model.language_model import LanguageModel, Loss, ModelState
from synthe_core.model.session import tensors_digest
from synthe_core.ops.cross_entropy import IGNORED


class Spec(NamedTuple):
    """The identity of a model: its config and a digest of its weights."""

    config: dict[str, Any]
    digest: str

    def model_dump(self, mode: str = "json") -> dict[str, Any]:
        return self._asdict()


class Reading(NamedTuple):
    """What one pass of a model may read. pieces: several tokens that continue a text; else they are read one by one.
    batches: several rows; else each is read alone."""

    pieces: bool = True
    batches: bool = True


class TransformersModel:
    """A causal language model of transformers with an explicit state: the interface that the engine uses of a
    `LanguageModel`.

    Its state is the tree of its cache's tensors (see `cache_state`). Keys and values grow with every token, up to
    `limit` of them; the engine refuses longer texts, and in a longer text the oldest tokens are dropped. A model whose
    tensors are all recurrent has no `limit`.

    Padding would change recurrent tensors: the rows of a pass are then read in groups of equal length, without any.
    InputError for a model without a cache that it takes and returns. Whether pieces and batches give the same numbers
    is another check (`transformers_trial`), which sets `reading`.
    """

    reading = Reading()

    confidence = None
    router = None
    without: frozenset[str] = frozenset()
    signals: tuple[str, ...] = ()

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.base: Any = getattr(inner, inner.base_model_prefix, None)
        self._known = set() if self.base is None else set(inspect.signature(self.base.forward).parameters)
        self.name = type(inner).__name__
        argument = next((name for name in ARGUMENTS if name in self._known), None)
        if argument is None or "use_cache" not in self._known:
            raise InputError(f"{self.name} cannot run: it takes no cache", OTHERS)
        config = inner.config.get_text_config()
        self.vocab = int(config.vocab_size)
        self.embedding = inner.get_input_embeddings()
        self.spec = Spec(json.loads(inner.config.to_json_string(use_diff=False)), tensors_digest(inner.state_dict()))
        try:
            self._measure(argument, config)
        except InputError as error:
            raise InputError(f"{self.name} cannot run: {error.message}", OTHERS) from None
        except Exception as error:  # an architecture may raise anything for these arguments
            raise InputError(f"{self.name} cannot run: {' '.join(str(error).split())[:200]}", OTHERS) from error
        limit = getattr(config, "max_position_embeddings", None)
        self.limit = limit if isinstance(limit, int) and limit > 0 else None
        if self._has_windows and self.limit is None:
            raise InputError(
                f"{self.name} cannot run: its config.json does not limit the length of a text",
                "put in its max_position_embeddings, in tokens",
            )

    def init_state(self, batch: int, *, device: torch.device | str | None = None) -> ModelState:
        """The initial state of `batch` texts."""
        device = self.embedding.weight.device if device is None else device

        def spread(leaf: Tensor) -> Tensor:
            return torch.zeros(batch, *leaf.shape[1:], dtype=leaf.dtype, device=device)

        position = torch.zeros(batch, dtype=torch.int64, device=device)
        return ModelState(position, states.map_leaves(spread, self._initial))

    def state_bytes(self, time: int = 1) -> int:
        """Bytes of one text's state after `time` tokens."""
        total, time = 8, time if self.limit is None else min(time, self.limit)
        for block, parts in enumerate(self._initial):
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
        if self.reading.batches and not self._is_recurrent:
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
        if self._has_windows:
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

    @torch.inference_mode()
    def loss(
        self, tokens: Tensor, targets: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Loss, ModelState]:
        """Cross-entropy of `targets` int64 [B, T] (-100 = not scored) given the tokens up to each."""
        hidden, after, _ = self.hidden(tokens, state, lengths)
        chunks = logits_in_chunks(cast(LanguageModel, self), hidden, targets)
        each = torch.cat(
            [F.cross_entropy(logits.transpose(1, 2), part, reduction="none") for logits, part in chunks], 1
        )
        return Loss(each.sum(), (targets != IGNORED).sum(), {}, each, {}, 0.0), after

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Its modules under the names of transformers, which adapters use."""
        return self.inner.named_modules(*args, **kwargs)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.inner.parameters()

    def flops(self, time: int) -> float:
        """Floating-point operations per token: two for each entry of a matrix that is not an embedding alone. What
        attention reads of the text is not counted."""
        tied = self.inner.get_output_embeddings().weight is self.embedding.weight
        matrices = sum(each.numel() for each in self.parameters() if each.dim() >= 2)
        return 2.0 * (matrices if tied else matrices - self.embedding.weight.numel())

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its embedding, in which it computes."""
        return cast(torch.dtype, self.embedding.weight.dtype)

    @torch.inference_mode()
    def _measure(self, argument: str, config: Any) -> None:
        """Learns the form of the cache and the shapes of its tensors by reading one token."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.embedding.weight.device)
        outputs = self.base(input_ids=token, use_cache=True)
        self.head = _head(self.inner, self.base, type(outputs))
        self.form: CacheForm = cache_form(outputs, argument, config)
        self._initial = initial_blocks(self.form.read(outputs[argument]))
        parts = [part for parts in self._initial for part in parts]
        self._has_windows = any(isinstance(part, LayerCache) for part in parts)
        self._is_recurrent = not all(isinstance(part, LayerCache) for part in parts)


OTHERS = "synthe import hf lists the architectures that our learners have; others run if transformers gives their cache"


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


def _newest(part: Any, count: int) -> Any:
    """The newest `count` tokens of a window; what is older is padding. A recurrent part is itself."""
    if not isinstance(part, LayerCache):
        return part
    return LayerCache(*(tensor[:, max(0, tensor.shape[1] - count) :] for tensor in part))
