"""A model as it is served: its weights once, its tokenizer, and the adapters that it can wear."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.adapters.lora import Adapter, put_on, take_off
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.inference.steady import steady
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
    _worn: Adapter | None = field(default=None, repr=False)

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
        """Within the block passes run as they should: with the adapter on, and the kernels of the recipe.

        The model wears it until another is asked for, as most steps need the same as the step before.
        """
        if adapter is not self._worn:
            take_off(self.model)
            self._worn = None
            if adapter is not None:
                put_on(self.model, adapter)
                self._worn = adapter
        with self.context.activate(), steady():
            yield

    def prints(self, adapter: Adapter | None) -> Prints:
        """What states belong to: to be asked between two passes, as the adapter is put on for it."""
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
        maps = dict(self.model.named_modules())
        for each in adapter.maps:
            weight = getattr(maps.get(each), "weight", None)
            adapter.fit(each, None if weight is None else weight.shape, path)
        self.adapters[name] = adapter
