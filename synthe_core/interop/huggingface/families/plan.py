"""What a published architecture is in our learners: the model of a recipe, and what each of our tensors is made of."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.interop.huggingface.published import Config


class Origin(NamedTuple):
    """What a tensor of ours is made of: published tensors, and how.

    make: of the tensors in the order of their names, in float32, ours; it works on shapes too (device `meta`). None:
    they are concatenated along their rows.
    otherwise: what it is made of in a file without some of these tensors.
    rows: how many rows each published tensor has, where these are not equal shares of ours.
    undo: of ours the published tensors. None: they follow from `make`, which only moves numbers (`published_parts`).
    """

    names: tuple[str, ...]
    make: Callable[..., Tensor] | None = None
    otherwise: Origin | None = None
    rows: tuple[int, ...] | None = None
    undo: Callable[[Tensor], Sequence[Tensor]] | None = None

    def made(self, parts: list[Tensor]) -> Tensor:
        """Our tensor, of the published ones."""
        if self.make is not None:
            return self.make(*parts)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def origin(
    *names: str,
    make: Callable[..., Tensor] | None = None,
    rows: tuple[int, ...] | None = None,
    undo: Callable[[Tensor], Sequence[Tensor]] | None = None,
) -> Origin:
    return Origin(names, make, rows=rows, undo=undo)


def linear(ours: str, *theirs: str, bias: bool = False, rows: tuple[int, ...] | None = None) -> dict[str, Origin]:
    """The matrix of a linear map, and its bias, of those of published maps one below the other, of so many rows each;
    by default they have equal numbers."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{ours}.{kind}": origin(*(f"{name}.{kind}" for name in theirs), rows=rows) for kind in kinds}


def transposed(ours: str, theirs: str) -> dict[str, Origin]:
    """The matrix and bias of a linear map whose published matrix [inputs, outputs] is transposed."""
    matrix = origin(f"{theirs}.weight", make=_transposed, undo=lambda ours: [_transposed(ours)])
    return {f"{ours}.weight": matrix, f"{ours}.bias": origin(f"{theirs}.bias")}


def _transposed(matrix: Tensor) -> Tensor:
    return matrix.t().contiguous()


def norm(theirs: str, *, bias: bool = False, zero_centered: bool = False) -> dict[str, Origin]:
    """The weight of a norm, and its bias. zero_centered: the published weight is w of 1 + w."""
    weight = origin(f"{theirs}.weight")
    if zero_centered:
        weight = origin(f"{theirs}.weight", make=_one_more, undo=_one_less)
    return {"weight": weight} | ({"bias": origin(f"{theirs}.bias")} if bias else {})


def _one_more(weight: Tensor) -> Tensor:
    return weight + 1


def _one_less(weight: Tensor) -> list[Tensor]:
    """In float64, which loses nothing of it."""
    return [weight.double() - 1]


class Part(NamedTuple):
    """One learner of a layer: its `spec`, the tensors of the norm before it, those of its own, and those of the norm
    after it. A learner without such a norm has none."""

    spec: dict[str, Any]
    norm: dict[str, Origin]
    tensors: dict[str, Origin]
    post_norm: dict[str, Origin] = {}  # noqa: RUF012 (never changed)


@dataclass
class Plan:
    """A model: `layers` from the bottom up, each a block, and the tensors outside them.

    eps:       epsilon of its norms.
    options:   other keys of a recipe's `model`, such as `embedding_scale`.
    positions: the published name of learned position embeddings, or what they are made of.
    embedded:  what our embeddings are made of, where that is not `embedding` as it is.
    tie:       whether embedding and head share a matrix by config.json.
    ignored:   a pattern of the names of published tensors that the language model has no use for.
    context:   the longest text that it computes as published, where that is less than the config's limit.
    aliases:   pairs of a beginning of names and another that they have in some files.
    notices:   what a user should know.
    """

    layers: list[list[Part]]
    width: int
    vocab: int
    embedding: str
    norm: dict[str, Origin]
    eps: float
    tie: bool
    head: str = "lm_head.weight"
    options: dict[str, Any] = field(default_factory=dict)
    positions: str | Origin | None = None
    embedded: Origin | None = None
    ignored: str | None = None
    context: int | None = None
    aliases: tuple[tuple[str, str], ...] = ()
    notices: list[str] = field(default_factory=list)

    def model(self, tie: bool) -> dict[str, Any]:
        """The `model` of a recipe: the kinds of block whose repetition gives the layers."""
        specs = [[part.spec for part in layer] for layer in self.layers]
        count = len(specs)
        period = next(n for n in range(1, count + 1) if all(specs[i] == specs[i % n] for i in range(count)))
        return {
            "width": self.width,
            "blocks": count,
            "block": specs[0] if period == 1 else specs[:period],
            "tie": tie,
            "embed_norm": False,
            "norm_eps": self.eps,
            **self.options,
        }

    def origins(self, tie: bool) -> dict[str, Origin]:
        """Every tensor of our model, and what it is made of."""
        origins = {"embedding.weight": self.embedded or origin(self.embedding)} | _under("norm", self.norm)
        if self.positions is not None:
            made = origin(self.positions) if isinstance(self.positions, str) else self.positions
            origins["positions.weight"] = made
        if not tie:
            origins["head.weight"] = origin(self.head)
        if self.options.get("head_bias"):
            origins["head.bias"] = origin(f"{self.head.removesuffix('weight')}bias")
        for block, layer in enumerate(self.layers):
            for place, part in enumerate(layer):
                origins |= _under(f"blocks.{block}.norms.{place}", part.norm)
                origins |= _under(f"blocks.{block}.post_norms.{place}", part.post_norm)
                origins |= _under(f"blocks.{block}.learners.{place}", part.tensors)
        return origins

    def spelled_as(self, published: Container[object]) -> Plan:
        """This plan with the names that `published` has: its own, or their aliases, and what they are otherwise."""

        def name(own: str) -> str:
            others = (new + own.removeprefix(old) for old, new in self.aliases if own.startswith(old))
            return own if own in published else next((other for other in others if other in published), own)

        def named(origins: dict[str, Origin]) -> dict[str, Origin]:
            return {key: chosen(each) for key, each in origins.items()}

        def chosen(each: Origin) -> Origin:
            own = each._replace(names=tuple(map(name, each.names)), otherwise=None)
            if each.otherwise is None or all(one in published for one in own.names):
                return own
            other = chosen(each.otherwise)
            return other if all(one in published for one in other.names) else own

        layers = [[Part(each.spec, *map(named, each[1:])) for each in layer] for layer in self.layers]
        return replace(
            self,
            layers=layers,
            embedding=name(self.embedding),
            norm=named(self.norm),
            head=name(self.head),
            positions=chosen(self.positions)
            if isinstance(self.positions, Origin)
            else self.positions and name(self.positions),
        )


def _under(prefix: str, origins: dict[str, Origin]) -> dict[str, Origin]:
    return {f"{prefix}.{name}": each for name, each in origins.items()}


Architectures = dict[str, Callable[[Config], Plan]]
"""The table of a file: published architectures, by `architectures` of config.json, and what makes the plan of each."""
