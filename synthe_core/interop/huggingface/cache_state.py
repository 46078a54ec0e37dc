"""The caches of transformers as states: trees of tensors with the batch row first, and caches made of them again.

Two kinds of tensors are in a cache. A *window* has an axis of time: keys and values, which grow with every token, or up
to a bound where attention slides. A *recurrent* tensor has the same shape after every token: the last inputs of a
convolution, the matrix of a linear attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.errors import InputError

ARGUMENTS = ("past_key_values", "cache_params", "state")
"""The names under which transformers' models take and return a cache."""


class LayerCache(NamedTuple):
    """The keys and values of the last tokens, [B, n, H, K] each and the newest last. Shorter rows have padding in
    front. Where attention slides over W tokens, n is W - 1 at most."""

    keys: Tensor
    values: Tensor


class RecurrentCache(NamedTuple):
    """What a recurrent layer remembers, [B, ...] each: the last inputs of its convolutions, and its states."""

    conv: tuple[Tensor, ...]
    recurrent: tuple[Tensor, ...]


class CacheForm(ABC):
    """How one model's cache is made of tensors. Blocks are the layers, each a list of its `LayerCache` or
    `RecurrentCache`, of both, or of neither."""

    def __init__(self, argument: str) -> None:
        self.argument = argument

    @abstractmethod
    def fresh(self) -> Any:
        """The argument of a pass over texts that begin."""

    @abstractmethod
    def restore(self, blocks: Sequence[Sequence[Any]], past: int) -> Any:
        """The argument of a pass that continues `past` tokens. A model may write to recurrent tensors, which are
        copied; windows are not."""

    @abstractmethod
    def read(self, cache: Any) -> list[list[Any]]:
        """The blocks after a pass, with the windows of all its tokens."""

    def window_bound(self, block: int) -> int | None:
        """The most tokens that a block's window keeps; None for no bound."""
        return None


class LayeredCache(CacheForm):
    """A cache of one object a layer. It is built of layers of the same kinds as those of `example`."""

    def __init__(self, argument: str, example: Any) -> None:
        from transformers import cache_utils

        super().__init__(argument)
        self._kind = type(example)
        self._linear = hasattr(example, "linear_cache")  # MiniMax has its states beside the layers
        if self._kind is not cache_utils.DynamicCache and not self._linear:
            raise InputError(f"its cache is a {self._kind.__name__}, which synthe does not know")
        self._layers = list(example.layers)
        for layer in self._layers:
            if type(layer) not in _known_layers():
                raise InputError(f"it has layers of the kind {type(layer).__name__}, which synthe does not know")

    def fresh(self) -> Any:
        return self._kind() if self._linear else self._with([_new_layer(layer) for layer in self._layers])

    def restore(self, blocks: Sequence[Sequence[Any]], past: int) -> Any:
        if self._linear:
            return self._restore_beside(blocks)
        layers = []
        for example, parts in zip(self._layers, blocks, strict=True):
            layer = _new_layer(example)
            for part in parts:
                if isinstance(part, LayerCache):
                    _set_window(layer, part, past)
                else:
                    _set_recurrent(layer, example, part)
            layers.append(layer)
        return self._with(layers)

    def read(self, cache: Any) -> list[list[Any]]:
        beside = cache.linear_cache if self._linear else []
        blocks = [list(_parts(layer)) for layer in cache.layers]
        blocks += [[] for _ in range(len(blocks), len(beside))]
        for block, tensor in zip(blocks, beside, strict=False):
            if isinstance(tensor, Tensor):
                block.append(RecurrentCache((), (tensor,)))
        return blocks

    def window_bound(self, block: int) -> int | None:
        slides = block < len(self._layers) and getattr(self._layers[block], "is_sliding", False)
        return self._layers[block].sliding_window - 1 if slides else None

    def _with(self, layers: list[Any]) -> Any:
        cache = self._kind()
        cache.layers, cache.layer_class_to_replicate = layers, None
        return cache

    def _restore_beside(self, blocks: Sequence[Sequence[Any]]) -> Any:
        from transformers.cache_utils import DynamicLayer

        cache = self._kind()
        for index, parts in enumerate(blocks):
            cache.layers.append(DynamicLayer())
            for part in parts:
                if isinstance(part, LayerCache):
                    _set_window(cache.layers[index], part, 0)
                else:
                    cache.set_linear_cache(index, part.recurrent[0])  # replaced by a pass, not written to
        return cache


class TensorTree(CacheForm):
    """A cache without layers, whose tensors are all recurrent: RWKV's list of tensors, or xLSTM's object."""

    def __init__(self, argument: str, example: Any, config: Any) -> None:
        super().__init__(argument)
        self._kind, self._config = type(example), config

    def fresh(self) -> Any:
        return None  # the model makes one, with its own initial values

    def restore(self, blocks: Sequence[Sequence[Any]], past: int) -> Any:
        tensors = [tuple(each.clone() for each in parts[0].recurrent) for parts in blocks]
        if self._kind in (list, tuple):
            return list(tensors[0])
        first = tensors[0][0]
        cache = self._kind(self._config, len(first), dtype=first.dtype, device=first.device)
        cache.rnn_state = dict(enumerate(tensors))
        return cache

    def read(self, cache: Any) -> list[list[Any]]:
        if self._kind in (list, tuple):
            return [[RecurrentCache((), tuple(cache))]]
        return [[RecurrentCache((), tuple(cache.rnn_state[layer]))] for layer in sorted(cache.rnn_state)]


def cache_form(outputs: Any, argument: str, config: Any) -> CacheForm:
    """The form of the cache in the outputs of a pass over one token. InputError, without the model's name, for a cache
    that is no state."""
    cache = outputs.get(argument)
    if cache is None:
        raise InputError("it returns no cache: what it remembers is on its modules, or nowhere")
    if hasattr(cache, "layers"):
        return LayeredCache(argument, cache)
    if hasattr(cache, "rnn_state") or (
        isinstance(cache, list | tuple) and cache and all(isinstance(each, Tensor) for each in cache)
    ):
        return TensorTree(argument, cache, config)
    raise InputError(f"its cache is a {type(cache).__name__}, which synthe does not know")


def initial_blocks(blocks: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """One row's blocks before its first token, made of those after it: empty windows, and zeros that no pass reads."""

    def empty(part: Any) -> Any:
        if isinstance(part, LayerCache):
            return LayerCache(*(torch.zeros_like(tensor[:, :0]) for tensor in part))
        return states.map_leaves(torch.zeros_like, part)

    return [[empty(part) for part in parts] for parts in blocks]


def _known_layers() -> tuple[type[Any], ...]:
    from transformers import cache_utils as kinds

    return (
        kinds.DynamicLayer,
        kinds.DynamicSlidingWindowLayer,
        kinds.LinearAttentionLayer,
        kinds.LinearAttentionAndFullAttentionLayer,
        kinds.LinearAttentionAndSlidingWindowAttentionLayer,
        kinds.DummyLayer,
    )


def _new_layer(example: Any) -> Any:
    """An empty layer of the same kind. One that slides keeps all of a pass, whose rows may be padded behind; not one
    with recurrent tensors too, whose rows never are."""
    names = ("sliding_window", "number_of_states")
    layer = type(example)(**{name: getattr(example, name) for name in names if hasattr(example, name)})
    if getattr(layer, "is_sliding", False) and not hasattr(layer, "conv_states"):
        layer.activate_past_recording()
    return layer


def _set_window(layer: Any, part: LayerCache, past: int) -> None:
    from transformers.cache_utils import DynamicLayer

    keys, values = (tensor.transpose(1, 2) for tensor in part)
    DynamicLayer.lazy_initialization(layer, keys, values)
    layer.keys, layer.values = keys, values
    if getattr(layer, "is_sliding", False):
        layer.cumulative_length = past


def _set_recurrent(layer: Any, example: Any, part: RecurrentCache) -> None:
    conv, recurrent = iter(part.conv), iter(part.recurrent)
    for index in range(layer.number_of_states):
        if example.is_conv_states_initialized[index]:
            tensor = next(conv)
            layer.conv_states[index], layer.is_conv_states_initialized[index] = tensor.clone(), True
            layer.conv_kernel_size[index] = tensor.shape[-1]
            layer.dtype, layer.device = tensor.dtype, tensor.device
        if example.is_recurrent_states_initialized[index]:
            layer.recurrent_states[index] = next(recurrent).clone()
            layer.is_recurrent_states_initialized[index] = True
        layer.has_previous_state[index] = example.has_previous_state[index]


def _parts(layer: Any) -> Iterator[Any]:
    """What one layer of a cache remembers."""
    if isinstance(getattr(layer, "keys", None), Tensor) and layer.keys.dim() == 4:
        yield LayerCache(layer.keys.transpose(1, 2), layer.values.transpose(1, 2))
    if hasattr(layer, "recurrent_states"):
        each = range(layer.number_of_states)
        conv = tuple(layer.conv_states[i] for i in each if layer.is_conv_states_initialized[i])
        recurrent = tuple(layer.recurrent_states[i] for i in each if layer.is_recurrent_states_initialized[i])
        if conv or recurrent:
            yield RecurrentCache(conv, recurrent)
