"""State: what a learner remembers between calls, as a tree of tensors with the batch row first in every leaf.

A tree is a tensor, or a NamedTuple, tuple, list or dict of trees. Batching, forking, saving, accounting and truncated
back-propagation need no more than this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Tree = Any
LEAF_BYTES = 500
"""Memory that a tensor takes beside its values (measured): its objects, and the allocator's rounding."""


def map_leaves(fn: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """`fn` on every leaf of `tree` (and the leaves at the same place of `others`), in the same shape of tree."""
    if isinstance(tree, Tensor):
        return fn(tree, *others)
    if isinstance(tree, dict):
        return {key: map_leaves(fn, value, *(o[key] for o in others)) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        mapped = [map_leaves(fn, value, *(o[i] for o in others)) for i, value in enumerate(tree)]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    raise TypeError(f"a state contains tensors only, not {type(tree).__name__}")


def named_leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every leaf with its dotted path: `blocks.0.1.memory`."""
    if isinstance(tree, Tensor):
        yield prefix, tree
        return
    if isinstance(tree, dict):
        items: Any = tree.items()
    elif hasattr(tree, "_fields"):
        items = zip(tree._fields, tree, strict=True)
    else:
        items = ((str(i), value) for i, value in enumerate(tree))
    for key, value in items:
        yield from named_leaves(value, f"{prefix}.{key}" if prefix else str(key))


def rows(tree: Tree) -> int:
    """The number of sequences in the state; 0 for a state without leaves."""
    return next((leaf.shape[0] for _, leaf in named_leaves(tree)), 0)


def nbytes(tree: Tree) -> int:
    """Bytes of all leaves."""
    return sum(leaf.numel() * leaf.element_size() for _, leaf in named_leaves(tree))


def memory_bytes(tree: Tree) -> int:
    """Bytes of a state that is kept: of all leaves, and of the objects that hold them."""
    return sum(LEAF_BYTES + leaf.numel() * leaf.element_size() for _, leaf in named_leaves(tree))


def detach(tree: Tree) -> Tree:
    """The state without its autograd graph: the boundary of truncated back-propagation."""
    return map_leaves(Tensor.detach, tree)


def take(tree: Tree, index: Tensor) -> Tree:
    """A copy of rows `index` (int64 [N]) of the state: forks, reorders and drops sequences."""
    return map_leaves(lambda leaf: leaf.index_select(0, index.to(leaf.device)), tree)


def put(tree: Tree, index: Tensor, part: Tree) -> Tree:
    """`tree` with rows `index` (int64 [N]) replaced by those of `part`; the inverse of `take`. If windows
    are longer in `part`, the other rows are padded at the front, their oldest end."""

    def replace(leaf: Tensor, rows: Tensor) -> Tensor:
        if leaf.dim() > 1:
            leaf = _pad_front(leaf, rows.shape[1])
        return leaf.index_copy(0, index.to(leaf.device), rows.to(leaf.dtype))

    return map_leaves(replace, tree, part)


def join(trees: Sequence[Tree]) -> Tree:
    """Concatenates the states of several batches. Shorter windows are padded at the front, their oldest end."""

    def concatenate(first: Tensor, *rest: Tensor) -> Tensor:
        parts = [first, *rest]
        if first.dim() > 1:
            longest = max(part.shape[1] for part in parts)
            parts = [_pad_front(part, longest) for part in parts]
        return torch.cat(parts)

    return map_leaves(concatenate, trees[0], *trees[1:])


def _pad_front(leaf: Tensor, length: int) -> Tensor:
    missing = length - leaf.shape[1]
    if missing == 0:
        return leaf
    return torch.cat([leaf.new_zeros(leaf.shape[0], missing, *leaf.shape[2:]), leaf], dim=1)


def to_tensors(tree: Tree, prefix: str = "") -> dict[str, Tensor]:
    """The state as a flat mapping of contiguous tensors, ready for safetensors."""
    return {name: leaf.detach().contiguous() for name, leaf in named_leaves(tree, prefix)}


def from_tensors(template: Tree, tensors: dict[str, Tensor], prefix: str = "") -> Tree:
    """The inverse of `to_tensors`: `template` gives the shape of the tree, `tensors` the values."""
    values = (tensors[name] for name, _ in named_leaves(template, prefix))
    return map_leaves(lambda leaf: next(values).to(device=leaf.device, dtype=leaf.dtype), template)
