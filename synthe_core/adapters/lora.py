"""Low-rank changes of a model's matrices: a value that is put on a built model and taken off it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthe_core.errors import InputError

FACTORS = ("lora_A", "lora_B")


@dataclass(frozen=True)
class LowRank:
    """The change s B A of a matrix [out, in]: `a` [rank, in], `b` [out, rank], `scale` s."""

    a: Tensor
    b: Tensor
    scale: float

    def onto(self, weight: Tensor) -> Tensor:
        """W + s B A, in the type of W and computed in no less than float32, whatever autocast says."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(weight.device.type, enabled=False):
            factors = (factor.to(weight.device, wide) for factor in (self.b, self.a))
            return torch.addmm(weight.to(wide), *factors, alpha=self.scale).to(weight.dtype)


@dataclass(frozen=True)
class Adapter:
    """`maps`: the change of each matrix, by the name of its module; `dropout`: of what A is given in training."""

    maps: Mapping[str, LowRank]
    dropout: float = 0.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The factors by the names that they have in a model which wears the adapter."""
        return {
            f"{name}.{key}.weight": factor
            for name, change in self.maps.items()
            for key, factor in zip(FACTORS, (change.a, change.b), strict=True)
        }

    def fit(self, name: str, shape: torch.Size | None, source: Path | str) -> None:
        """InputError where the change of `name` does not fit a matrix of `shape` (None: there is none)."""
        change, hint = self.maps[name], "it is an adapter of another model"
        if shape is None:
            raise InputError(f"{source} changes {name}, which the model has not", hint)
        if (given := [change.b.shape[0], change.a.shape[1]]) != list(shape):
            raise InputError(f"{source} changes {name} as a matrix {given}, and the model's is {list(shape)}", hint)


class Factor(nn.Linear):
    """A or B as a linear map, of values that are there: none are drawn first, so that adapters go on in no time."""

    def __init__(self, weight: Tensor, learns: bool) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=learns)
        self.bias = None  # type: ignore[assignment]


class Adapted(nn.Linear):
    """A linear map that wears a low-rank change: y = W x + s B A x. Only an existing map becomes one (see `put_on`).

    Its own tensors keep their names and stay untouched. `weight` is W + s B A, made anew whenever it is read, so that
    learners and kernels that read the matrix instead of calling the map (routed experts, attention's probe, Mamba's
    step sizes) are adapted too, gradients included.

    Cost, for N tokens and rank r: called, 2 N r (in + out) operations more than without, and training never makes the
    gradient of W, 2 N in out. Read, 2 r in out for making the matrix, and its gradient is made. Dropout takes from what
    A is given, and so is only where the map is called.
    """

    lora_A: nn.Linear
    lora_B: nn.Linear
    scale: float
    dropout: float

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return LowRank(self.lora_A.weight, self.lora_B.weight, self.scale).onto(_own(self))

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.lora_A(F.dropout(x, self.dropout, self.training) if self.dropout else x)
        y = F.linear(x, _own(self), self.bias)
        rows = torch.addmm(y.flatten(0, -2), narrow.flatten(0, -2), self.lora_B.weight.T, alpha=self.scale)
        return rows.view(y.shape)


def put_on(model: nn.Module, adapter: Adapter, *, learns: bool = False, source: Path | str = "the adapter") -> None:
    """Makes the model wear `adapter` instead of the one that it may wear; nothing of its own weights is copied.

    learns: the factors are trained, in place of the model's own parameters.
    Raises InputError where the adapter is of another model; the model is then as it was.
    """
    maps = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name in adapter.maps:
        adapter.fit(name, _own(maps[name]).shape if name in maps else None, source)
    take_off(model)
    if learns:
        model.requires_grad_(False)
    for name, change in adapter.maps.items():
        module = maps[name]
        like = _own(module)
        a, b = (f.to(like.device, like.dtype, copy=learns) for f in (change.a, change.b))  # a value stays what it is
        _dress(module, Worn(Factor(a, learns), Factor(b, learns), change.scale, adapter.dropout))


def take_off(model: nn.Module) -> None:
    """Leaves the model with its own weights alone, which are what they were before `put_on`, to the last bit."""
    for module in worn(model).values():
        _undress(module)


@contextmanager
def wearing(model: nn.Module, adapter: Adapter | None) -> Iterator[None]:
    """Within the block the model wears `adapter` (None: nothing), and afterwards what it wore before.

    Nothing is copied or read from disk: a server goes from one adapter to another in a few milliseconds. What a model
    wears holds for every thread that uses it.
    """
    before = [(module, _undress(module)) for module in worn(model).values()]
    try:
        if adapter is not None:
            put_on(model, adapter)
        yield
    finally:
        take_off(model)
        for module, clothes in before:
            _dress(module, clothes)


def worn(model: nn.Module) -> dict[str, Adapted]:
    """The maps of the model that are adapted, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def worn_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The factors of what the model wears, by name; empty where it wears nothing."""
    return {
        f"{name}.{key}.weight": getattr(module, key).weight for name, module in worn(model).items() for key in FACTORS
    }


class Folded(Mapping[str, Tensor]):
    """A model's tensors with an adapter added into them, each made when it is asked for."""

    def __init__(self, base: Mapping[str, Tensor], adapter: Adapter, source: Path | str = "the adapter") -> None:
        self._base, self._adapter, self._source = base, adapter, source
        for name in adapter.maps:
            if f"{name}.weight" not in base:
                adapter.fit(name, None, source)

    def __getitem__(self, name: str) -> Tensor:
        tensor, module = self._base[name], name.removesuffix(".weight")
        if module == name or module not in self._adapter.maps:
            return tensor
        self._adapter.fit(module, tensor.shape, self._source)
        return self._adapter.maps[module].onto(tensor)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, to which nothing is added for that."""
        return tuple(self._base[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


class Worn(NamedTuple):
    """What an adapted map wears."""

    lora_A: nn.Linear
    lora_B: nn.Linear
    scale: float
    dropout: float


def _dress(module: nn.Linear, clothes: Worn) -> None:
    module.__class__ = Adapted
    for key, value in clothes._asdict().items():
        setattr(module, key, value)


def _undress(module: Adapted) -> Worn:
    clothes = Worn(*(getattr(module, key) for key in Worn._fields))
    for key in Worn._fields:
        delattr(module, key)
    module.__class__ = nn.Linear  # type: ignore[assignment]
    return clothes


def _own(module: nn.Linear) -> Tensor:
    """The matrix as it is without a change."""
    own = module._parameters["weight"]
    assert own is not None
    return own
