"""A model as it is served: its weights once, its tokenizer, and the adapters that it serves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.adapters.lora import Adapter
from synthe_core.adapters.lora_linear import DEFAULT, attach, base_weight, detach, linear_maps
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.inference.steady import steady
from synthe_core.layers.adapter_batch import NONE, AdapterBatch, use_adapters
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.session import fingerprint
from synthe_core.storage.checkpoint import Checkpoint


class Passed(NamedTuple):
    """One pass of a model: `hidden` [B, T, D], what the head reads, the state after it, and `signals` [B, T] that the
    confidence head reads beside it."""

    hidden: Tensor
    state: Any
    signals: Mapping[str, Tensor]


class Prints(NamedTuple):
    """shape: `model.session.fingerprint`, which a session's file carries. weights: a digest of all of them."""

    shape: str
    weights: str


@dataclass
class Served:
    """name: what requests call it. limit: the longest text that it can read, None for one of any length.
    context: how its passes run."""

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    path: Path
    digest: str
    created: int
    adapters: dict[str, Adapter] = field(default_factory=dict)
    limit: int | None = None
    context: ExecutionContext = field(default_factory=ExecutionContext)
    _slots: dict[int, Adapter] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: Path, name: str | None = None, device: torch.device | str = "cpu") -> Served:
        """The checkpoint, run folder or .synapse file at `path`."""
        checkpoint = Checkpoint.open(path)
        context = context_for_recipe(checkpoint.recipe, torch.device(device))
        model = checkpoint.model(context.device).eval()
        model.requires_grad_(False)
        named = name or path.resolve().name.removesuffix(".synapse")
        created = int(checkpoint.path.stat().st_mtime)
        tokenizer = checkpoint.tokenizer()
        return cls(named, model, tokenizer, checkpoint.path, checkpoint.digest, created, context=context)

    @property
    def vocab(self) -> int:
        return self.model.vocab

    @property
    def state_bytes(self) -> int:
        """The most bytes that one text's state takes, however long the text."""
        return self.bytes_at(1 << 20)

    def bytes_at(self, length: int) -> int:
        """The bytes of one text's state after `length` tokens."""
        return self.model.state_bytes(max(1, length))

    @contextmanager
    def ready(self, adapter: Adapter | None) -> Iterator[None]:
        """Within the block passes run with the adapter for every row, and with the kernels of the recipe."""
        batch = AdapterBatch((NONE if adapter is None else self.slot(adapter),))
        with use_adapters(batch), self.context.activate(), steady():
            yield

    def slot(self, adapter: Adapter) -> int:
        """The slot of an adapter, which is attached to the model if it is not yet; between two passes only."""
        for slot, each in self._slots.items():
            if each is adapter:
                return slot
        slot = next(slot for slot in count(DEFAULT + 1) if slot not in self._slots)
        attach(self.model, adapter, slot=slot)
        self._slots[slot] = adapter
        return slot

    def detach_unused(self, used: Iterable[Adapter]) -> None:
        """Detaches the adapters that are neither served nor `used`; between two passes only."""
        needed = {id(adapter) for adapter in (*self.adapters.values(), *used)}
        for slot in [slot for slot, each in self._slots.items() if id(each) not in needed]:
            detach(self.model, slot)
            del self._slots[slot]

    def prints(self, adapter: Adapter | None) -> Prints:
        """What states belong to: to be called between two passes, as it attaches the adapter."""
        with self.ready(adapter):
            shape = fingerprint(self.model)
        digest = hashlib.sha256(f"{shape} {self.digest}".encode())
        for name, factor in sorted(adapter.tensors.items()) if adapter is not None else ():
            digest.update(name.encode() + factor.detach().cpu().float().contiguous().numpy().tobytes())
        return Prints(shape, digest.hexdigest()[:16])

    def read(self, tokens: Tensor, state: Any, lengths: Tensor | None = None) -> Passed:
        """Reads `tokens` int64 [B, T], right-padded where `lengths` [B] is given, from `state` (None: a fresh one)."""
        hidden, after, ctx = self.model.hidden(tokens, state, lengths)
        return Passed(hidden, after, ctx.signals)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits [..., V] of what the head reads, [..., D]."""
        return self.model.head(hidden).float()

    def confidence(self, hidden: Tensor, signals: Mapping[str, Tensor], surest: Tensor) -> Tensor:
        """The probability [B, T] that the likeliest token is right, given log of the model's own, `surest` [B, T]."""
        if self.model.confidence is None or "confidence" in self.model.without:
            return surest.exp()
        return self.model.confidence(hidden, signals, surest).sigmoid()

    def load_adapter(self, name: str, path: Path) -> None:
        """Opens the adapter at `path`, a checkpoint or a folder of PEFT's; InputError where it is not of this model."""
        if name in self.adapters:
            raise InputError(f"{self.name} has an adapter '{name}' already", "unload it first, or choose another name")
        adapter = Checkpoint.open(path, base=self.path).adapter
        assert adapter is not None
        maps = linear_maps(self.model)
        for each in adapter.maps:
            adapter.check(each, base_weight(maps[each]).shape if each in maps else None, path)
        self.adapters[name] = adapter
