"""Adapters on a built model: its linear maps become `LoRALinear`, which holds adapters in numbered slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthe_core.adapters.lora import FACTORS, Adapter, LowRank
from synthe_core.layers.adapter_batch import current_adapters
from synthe_core.layers.projection import Linear, product
from synthe_core.layers.quantized import quantized_matrix
from synthe_core.ops.linear import addmm
from synthe_core.ops.low_rank import NONE, add_low_rank, suits
from synthe_core.ops.quantized_linear import quantized_linear
from synthe_core.quantization.matrix import QuantizedMatrix

DEFAULT = 0
"""The slot of passes that name no adapters (see `use_adapters`), and the default of `attach`."""


class Factor(nn.Linear):
    """A or B as a linear map made of existing values; `nn.Linear` would draw random ones first, which takes time."""

    def __init__(self, weight: Tensor, trainable: bool) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.bias = None  # type: ignore[assignment]


class LoRALinear(Linear):
    """y = W x + b + s B A x with the low-rank change of each row's own adapter; `attach` puts it in a map's place.

    x [B, ..., in], y [B, ..., out]. `lora_A`, `lora_B` and `scaling` hold an adapter in each of `slots`. Which one a
    row uses is a value of the pass (`use_adapters`): one slot for all rows, or one for each. `weight` and `bias` are
    the base's own parameters, by their own names.

    Rows with different adapters go through W together. Then A and B of each adapter multiply its own rows, brought
    together in one copy: a row gets the numbers that it would get alone wherever products do not depend on the number
    of rows. Where no row has an adapter here, the cost is that of the plain map.

    W may stay quantised (`layers.quantized`); it is frozen then.

    Read, `weight` is W + s B A: of learners that pass the matrix to an op (routed experts, a filter's network). In a
    pass whose rows have different adapters, reading raises ValueError; `per_adapter` computes such rows separately.

    Cost of N rows of rank r: called, 2 N r (in + out) operations more than without, and training never makes the
    gradient of W, 2 N in out. Read, 2 r in out for making the matrix, and its gradient is made. Dropout applies to the
    input of A, and so only where the map is called.
    """

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self._parameters["weight"], self._parameters["bias"] = base._parameters.get("weight"), base._parameters["bias"]
        self.matrix = quantized_matrix(base)
        self.training = base.training
        self.__dict__["base"] = base  # no child: it shares its parameters with this map, and comes back with `detach`
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.scaling: dict[int, float] = {}
        self.dropout: dict[int, float] = {}
        self.slots: frozenset[int] = frozenset()

    @property
    def base_weight(self) -> Tensor:
        """W, without an adapter."""
        return base_weight(self)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        batch = current_adapters()
        slot = DEFAULT if batch is None else batch.groups(self.slots).only
        if slot is None:
            raise ValueError("rows of one pass have different adapters of a matrix that is read: see `per_adapter`")
        return self.low_rank(slot).merge(self.base_weight) if slot in self.slots else self.base_weight

    def first_rows(self, count: int) -> Tensor:
        """The first rows of `weight`, to the bit, of a quantised W without dequantising the others."""
        if self.matrix is None:
            return self.weight[:count]
        base = torch.zeros(self.out_features, self.in_features)
        base[:count] = self.matrix.rows(slice(0, count))
        batch = current_adapters()
        slot = DEFAULT if batch is None else batch.groups(self.slots).only
        return (self.low_rank(slot).merge(base) if slot in self.slots else base)[:count]

    def low_rank(self, slot: int) -> LowRank:
        """The change that the adapter in `slot` makes here."""
        a, b = (cast(Factor, factors[str(slot)]).weight for factors in (self.lora_A, self.lora_B))
        return LowRank(a, b, self.scaling[slot])

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x)

    def project(
        self, x: Tensor, outputs: slice | None = None, *, bias: bool = True, dtype: torch.dtype | None = None
    ) -> Tensor:
        batch = current_adapters()
        indices = (DEFAULT,) if batch is None else batch.indices
        if self.slots.isdisjoint(indices):
            return self._base_product(x, outputs, bias, dtype)
        if outputs is None and dtype in (None, torch.float32) and self._is_row_by_row(x):
            return self._add_row_by_row(self._base_product(x, outputs, bias, dtype), x, indices)
        groups = None if batch is None else batch.groups(self.slots)
        if groups is None or groups.only is not None:
            y = self._base_product(x, outputs, bias, dtype)
            return self._add(DEFAULT if groups is None else groups.only, y, x, outputs, dtype)
        x = groups.gather(x)
        y = self._base_product(x, outputs, bias, dtype)
        parts = [self._add(s.slot, y[s.start : s.end], x[s.start : s.end], outputs, dtype) for s in groups.spans]
        return groups.scatter(torch.cat(parts))

    def _is_row_by_row(self, x: Tensor) -> bool:
        """Whether every row's change is added by `add_low_rank`."""
        if torch.is_autocast_enabled(x.device.type) or (self.training and any(self.dropout.values())):
            return False
        factors = [each for slot in self.slots for each in self.low_rank(slot).factors]
        return x.dim() > 1 and suits(x, x, factors)

    def _add_row_by_row(self, y: Tensor, x: Tensor, indices: Sequence[int]) -> Tensor:
        slots = sorted(self.slots)
        numbers = [slots.index(each) if each in self.slots else NONE for each in indices]
        numbers = numbers * len(x) if len(numbers) == 1 else numbers
        if len(numbers) != len(x):
            raise ValueError(f"the pass has {len(numbers)} rows with adapters, and a map reads {len(x)}")
        changes = [self.low_rank(slot) for slot in slots]
        add_low_rank(y, x.contiguous(), [(*each.factors, each.scaling) for each in changes], numbers)
        return y

    def _base_product(self, x: Tensor, outputs: slice | None, with_bias: bool, dtype: torch.dtype | None) -> Tensor:
        """W x + b."""
        bias = self.bias if with_bias else None
        if self.matrix is not None:
            return quantized_linear(x, self.matrix, bias, outputs, dtype)
        return product(x, self.base_weight, bias, outputs, dtype)

    def _add(self, slot: int | None, y: Tensor, x: Tensor, outputs: slice | None, dtype: torch.dtype | None) -> Tensor:
        """y + s B A x of the adapter in `slot`; y itself where the map has none there."""
        if slot not in self.slots:
            return y
        change, dropout = self.low_rank(slot), self.dropout[slot]
        a, b = change.lora_A, change.lora_B if outputs is None else change.lora_B[outputs]
        if a.dtype == torch.bfloat16 and x.dtype == torch.float32 and not a.requires_grad:  # see `Adapter.compact`
            a, b = a.float(), b.float()
        if dropout:
            x = F.dropout(x, dropout, self.training)
        narrow = product(x, a, None, None, dtype)
        with torch.autocast(x.device.type, enabled=False) if dtype is not None else nullcontext():
            flat = addmm(y.flatten(0, -2), narrow.flatten(0, -2), b.T.to(dtype or b.dtype), alpha=change.scaling)
        return flat.view(y.shape)

    def add(self, slot: int, factors: SlotFactors) -> None:
        """Holds an adapter's factors in `slot`."""
        self.lora_A[str(slot)], self.lora_B[str(slot)] = factors.lora_A, factors.lora_B
        self.scaling[slot], self.dropout[slot] = factors.scaling, factors.dropout
        self.slots = self.slots | {slot}

    def remove(self, slot: int) -> SlotFactors:
        """Empties `slot`, and returns its factors."""
        self.slots = self.slots - {slot}
        a, b = (cast(Factor, factors.pop(str(slot))) for factors in (self.lora_A, self.lora_B))
        return SlotFactors(a, b, self.scaling.pop(slot), self.dropout.pop(slot))

    def plain(self) -> nn.Linear:
        """The map in whose place this one is, with the parameters as they are now."""
        base: nn.Linear = self.__dict__["base"]
        base._parameters.update({name: each for name, each in self._parameters.items() if name in base._parameters})
        return base.train(self.training)


class SlotFactors(NamedTuple):
    """What a map holds in one slot; `dropout` of the input of A, in training."""

    lora_A: Factor
    lora_B: Factor
    scaling: float
    dropout: float


def attach(
    model: nn.Module,
    adapter: Adapter,
    *,
    slot: int = DEFAULT,
    trainable: bool = False,
    source: Path | str = "the adapter",
) -> None:
    """Puts `adapter` into `slot` of the model's maps, instead of what the slot holds; no weight of the model is copied.

    trainable: the factors are trained, and nothing else of the model.
    Raises InputError where the adapter is of another model; the model is then as it was.
    """
    maps = linear_maps(model)
    for name in adapter.maps:
        adapter.check(name, matrix_shape(maps[name]) if name in maps else None, source)
    detach(model, slot)
    if trainable:
        model.requires_grad_(False)
    factors = {}
    for name, change in adapter.maps.items():
        like = base_parameter(maps[name])
        dtype = like.dtype if not isinstance(like, QuantizedMatrix) else _factor_dtype(change, trainable)
        a, b = (f.to(like.device, dtype, copy=trainable) for f in (change.lora_A, change.lora_B))
        factors[name] = SlotFactors(Factor(a, trainable), Factor(b, trainable), change.scaling, adapter.dropout)
    _fill(model, slot, factors)


def _factor_dtype(change: LowRank, trainable: bool) -> torch.dtype:
    """Of an adapter on a quantised matrix: float32, or bfloat16 as they are."""
    return torch.bfloat16 if change.lora_A.dtype == torch.bfloat16 and not trainable else torch.float32


def detach(model: nn.Module, slot: int | None = None) -> None:
    """Empties `slot`, or all of them. Maps without an adapter are the plain ones again, to the last bit."""
    maps = lora_linears(model)
    for each in {slot} if slot is not None else set().union(*(module.slots for module in maps.values())):
        _empty(model, each)


@contextmanager
def with_adapter(model: nn.Module, adapter: Adapter | None) -> Iterator[None]:
    """Within the block `adapter` is what is attached (None: nothing), and afterwards what was attached before.

    That holds for every thread that uses the model. Nothing is copied or read from disk.
    """
    before = _empty(model, DEFAULT)
    try:
        if adapter is not None:
            attach(model, adapter)
        yield
    finally:
        _empty(model, DEFAULT)
        _fill(model, DEFAULT, before)


def linear_maps(model: nn.Module) -> dict[str, nn.Linear]:
    """The model's linear maps by name, without the factors of adapters."""
    linear = ((name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear))
    return {name: each for name, each in linear if not isinstance(each, Factor)}


def lora_linears(model: nn.Module) -> dict[str, LoRALinear]:
    """The maps that hold adapters, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def adapter_parameters(model: nn.Module, slot: int = DEFAULT) -> dict[str, nn.Parameter]:
    """The factors in a slot, by the names of `Adapter.tensors`; empty where it holds no adapter."""
    maps = {name: module for name, module in lora_linears(model).items() if slot in module.slots}
    return {
        f"{name}.{factor}.weight": getattr(module, factor)[str(slot)].weight
        for name, module in maps.items()
        for factor in FACTORS
    }


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by the names that checkpoints give them."""
    factors = adapter_parameters(model)
    named = factors.items() if factors else model.named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def base_parameter(linear: nn.Linear) -> nn.Parameter | QuantizedMatrix:
    """What holds the matrix of a map without an adapter."""
    matrix = quantized_matrix(linear)
    return cast(nn.Parameter, linear._parameters["weight"]) if matrix is None else matrix


def base_weight(linear: nn.Linear) -> Tensor:
    """The matrix of a map without an adapter; of a quantised one, dequantised."""
    held = base_parameter(linear)
    return held.dequantize() if isinstance(held, QuantizedMatrix) else held


def matrix_shape(linear: nn.Linear) -> torch.Size:
    """[outputs, inputs] of a map."""
    return torch.Size((linear.out_features, linear.in_features))


def _fill(model: nn.Module, slot: int, factors: Mapping[str, SlotFactors]) -> None:
    """Puts factors into the slot of the maps that they are named for."""
    maps = linear_maps(model)
    _replace(model, {maps[name]: LoRALinear(maps[name]) for name in factors if not isinstance(maps[name], LoRALinear)})
    maps = linear_maps(model)
    for name, each in factors.items():
        cast(LoRALinear, maps[name]).add(slot, each)


def _empty(model: nn.Module, slot: int) -> dict[str, SlotFactors]:
    """Empties a slot, and returns its factors by the maps' names."""
    maps = {name: module for name, module in lora_linears(model).items() if slot in module.slots}
    factors = {name: module.remove(slot) for name, module in maps.items()}
    _replace(model, {module: module.plain() for module in maps.values() if not module.slots})
    return factors


def _replace(model: nn.Module, modules: Mapping[nn.Linear, nn.Linear]) -> None:
    """Puts modules in the places of others, wherever these are children."""
    for _, parent in list(model.named_modules()) if modules else ():
        for name, child in parent._modules.items():
            if child in modules:
                parent._modules[name] = modules[cast(nn.Linear, child)]
