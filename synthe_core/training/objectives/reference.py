"""The reference of preference objectives: the model that a run begins with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.adapters.lora_linear import adapter_parameters, trainable_parameters
from synthe_core.data.stream import Batch
from synthe_core.layers.adapter_batch import NONE, AdapterBatch, use_adapters
from synthe_core.model.sharded_tensors import exchange, whole
from synthe_core.training.objectives.frozen_pass import frozen_logprobs
from synthe_core.training.objectives.objective import ObjectiveSetup
from synthe_core.training.objectives.reference_cache import KEY_BYTES, ReferenceCache, from_tensors, to_tensors

WEIGHTS, KEYS, VALUES = "weights.", "rows.keys", "rows.values"


class Reference:
    """log p_ref(answer | prompt) of rows, where p_ref is the model that training begins with.

    A new adapter changes nothing at first: then the reference is the model without its adapter, and no weight is
    copied. Of an adapter that is trained further, and of full training, it is a copy of the weights that are trained,
    which is saved with every checkpoint; for a pass it takes their place.

    A row is computed once. Its value is stored in a file of the cache folder whose name is a digest of the reference
    and of how it is run, by a digest of the row's tokens: runs with other settings read it there. Checkpoints hold the
    values that a run has used, so that a resumed run has the same.
    """

    def __init__(self) -> None:
        self._setup: ObjectiveSetup | None = None
        self._resumed = False
        self._weights: dict[str, Tensor] = {}
        self._values: dict[bytes, float] = {}
        self._cache: ReferenceCache | None = None

    def begin(self, setup: ObjectiveSetup) -> None:
        """Takes the model as it is for the reference, or of a resumed run what was loaded."""
        self._setup = setup
        factors = adapter_parameters(setup.model)
        is_new = all(not whole(p).any() for name, p in factors.items() if ".lora_B." in name) if factors else False
        if not self._resumed and not is_new:
            self._weights = {name: each.detach().clone() for name, each in _trained(setup.model).items()}
        self._weights = {name: each.to(setup.context.device) for name, each in self._weights.items()}
        with self.applied(setup.model):
            excluded = factors.values() if not self._weights else ()
            self._cache = ReferenceCache(_digest(setup, excluded))
        self._values = self._cache.read() | self._values

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model is the reference; nothing is copied."""
        if not self._weights:
            with use_adapters(AdapterBatch((NONE,))):
                yield
            return
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    def _swap(self, model: nn.Module) -> None:
        engine = None if self._setup is None else self._setup.engine
        with nullcontext() if engine is None else engine.changing():
            for name, tensor in _trained(model).items():
                self._weights[name] = exchange(tensor, self._weights[name])

    def logprobs(self, model: Any, batch: Batch, *, store: bool = True) -> Tensor:
        """log p_ref(answer | prompt) of each row on the CPU, [B]. store: for later calls with the same rows."""
        assert self._setup is not None, "`begin` comes first"
        if not store:
            with self.applied(model):
                return frozen_logprobs(model, batch, self._setup)
        keys = [_row_key(batch, row) for row in range(len(batch.inputs))]
        new = {key: row for row, key in enumerate(keys) if key not in self._values}
        engine = self._setup.engine
        if engine is not None and engine.sharded and any(engine.ranks.gather(bool(new))):
            new = {key: row for row, key in enumerate(keys)}  # all processes make the same passes
        if new:
            with self.applied(model):
                values = frozen_logprobs(model, batch.select(torch.tensor(list(new.values()))), self._setup)
            self._values.update(zip(new, values.tolist(), strict=True))
        dtype = torch.float64 if _is_double(model) else torch.float32
        return torch.tensor([self._values[key] for key in keys], dtype=dtype)

    def store(self) -> None:
        """Writes the values to the cache folder."""
        if self._cache is not None:
            self._cache.write(self._values)

    def tensors(self) -> dict[str, Tensor]:
        """The copied weights, and the values so far."""
        self.store()
        keys, values = to_tensors(self._values)
        return {KEYS: keys, VALUES: values} | {WEIGHTS + name: each for name, each in self._weights.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `tensors`."""
        self._resumed = True
        self._values = from_tensors(tensors[KEYS], tensors[VALUES])
        self._weights = {
            name.removeprefix(WEIGHTS): tensor.clone() for name, tensor in tensors.items() if name.startswith(WEIGHTS)
        }


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters, and of full training the buffers of a checkpoint too."""
    tensors: dict[str, Tensor] = dict(trainable_parameters(model))
    if not adapter_parameters(model):
        stored = model.state_dict()
        tensors |= {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return tensors


def _digest(setup: ObjectiveSetup, excluded: Iterable[Tensor]) -> str:
    """Of the model's weights without the `excluded`, its architecture, and how its passes run."""
    context, model = setup.context, setup.model
    facts = {
        "model": model.spec.model_dump(mode="json"),
        "device": context.device.type,
        "precision": context.precision,
        "kernels": dict(context.kernels),
        "tuned_kernels": dict(context.tuned_kernels),
    }
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    left_out = {id(each) for each in excluded}
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in left_out:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(whole(tensor.detach()).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _row_key(batch: Batch, row: int) -> bytes:
    """A digest of the tokens of a row, and of which of them are targets."""
    length = batch.inputs.shape[1] if batch.lengths is None else int(batch.lengths[row])
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for tensor in (batch.inputs, batch.targets):
        digest.update(tensor[row, :length].numpy().tobytes())
    return digest.digest()


def _is_double(model: Any) -> bool:
    return next(iter(model.parameters())).dtype == torch.float64
