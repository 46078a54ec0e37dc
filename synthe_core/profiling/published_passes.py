"""Bytes of activations of a published model that a library runs, from passes without storage.

Its layers differ, so that no smaller model of one and two blocks stands for it. Passes of the whole model run on the
device `meta`, which computes shapes only: what they would allocate is counted. Kernels may take a little more or less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from synthe_core.adapters.lora_linear import trainable_parameters
from synthe_core.interop.huggingface.pretrained import library, quiet
from synthe_core.profiling.activations import Passes, Plane
from synthe_core.profiling.adapted import FrozenBase
from synthe_core.profiling.allocations import Allocations
from synthe_core.recipe.schema import Recipe


class CountedAllocations(TorchDispatchMode):
    """Within the block, `peak` is the most bytes that the results of operations have at a time, beside what there was
    before; views count as what they are views of."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._current = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def retained(self) -> int:
        """Bytes that are in use now."""
        self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
        self._current = sum(size for _, size in self._alive.values())
        return self._current

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {each.untyped_storage()._cdata for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)}
        result = function(*args, **(kwargs or {}))
        for each in tree_iter(result):
            if isinstance(each, Tensor) and (key := (storage := each.untyped_storage())._cdata) not in known:
                self._alive[key] = StorageWeakRef(storage), storage.nbytes()
                self._current += storage.nbytes()
        if self._current > self.peak:  # an upper bound: what has been freed is looked for only then
            self.peak = max(self.peak, self.retained)
        return result


def published_passes(recipe: Recipe, vocab: int, length: int, train: bool, base: FrozenBase | None = None) -> Passes:
    """The passes of a recipe's published model over `length` tokens; backward too with `train`, over `base` where an
    adapter is trained."""
    model: Any = recipe.meta_model(vocab)
    if train and base is not None:
        model = base.adapted(model, "meta")
    model.recompute = False
    with quiet(library(model.name)):
        sizes = [_sizes(model, rows, length, train) for rows in (1, 2)]
    if train and recipe.runtime.recompute:  # a block at a time, and the input of each
        blocks, width = recipe.model.blocks, recipe.model.width
        for rows, each in enumerate(sizes, start=1):
            inputs = 4.0 * blocks * width * rows * length
            each |= {name: each[name] / blocks + inputs for name in ("forward", "saved", "backward")}

    def plane(name: str) -> Plane:
        one, two = (each.get(name, 0.0) for each in sizes)
        return Plane(one, 0.0, two - one, 0.0)

    sizes_of = (p.numel() * p.element_size() for p in trainable_parameters(model).values())
    step = float(max(sizes_of, default=0)) if train else 0.0
    return Passes(
        length, plane("forward"), plane("saved"), lambda _: 0.0, plane("backward"), step, plane("serving"), {}
    )


def _sizes(model: Any, rows: int, length: int, train: bool) -> dict[str, float]:
    """Bytes of passes over `rows` texts: see `Passes`."""
    tokens = torch.zeros(rows, length, dtype=torch.int64, device="meta")
    frozen = any(not parameter.requires_grad for parameter in model.parameters())  # under an adapter
    if not frozen:
        model.requires_grad_(train)
    model.train(train)
    sizes = {"serving": float(_prefill(model.eval(), tokens).peak)}
    if not train:
        return sizes
    model.train()
    for parameter in trainable_parameters(model).values():
        parameter.grad = torch.zeros_like(parameter)
    with CountedAllocations() as forward:
        loss, _ = model.loss(tokens, tokens)
        saved = forward.retained
    with CountedAllocations() as backward:
        loss.objective.backward()
    return sizes | {"forward": float(forward.peak), "saved": float(saved), "backward": float(saved + backward.peak)}


@torch.no_grad()
def _prefill(model: Any, tokens: Tensor) -> Allocations:
    """What reading prompts takes, with the state after them."""
    with CountedAllocations() as counted:
        outputs = model.base(input_ids=tokens, use_cache=True)
        logits = model.head(outputs.last_hidden_state[:, -1:])
        retained = counted.retained
        del outputs, logits
    return Allocations(counted.peak, retained)
