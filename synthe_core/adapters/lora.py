"""Low-rank changes of a model's matrices (LoRA, Hu et al. 2021) as values: W + s B A."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.storage.tensor_file import Extent

FACTORS = ("lora_A", "lora_B")


@dataclass(frozen=True)
class LowRank:
    """The change s B A of a matrix [out, in]: `lora_A` [r, in], `lora_B` [out, r], `scaling` s."""

    lora_A: Tensor
    lora_B: Tensor
    scaling: float

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B."""
        return self.lora_A, self.lora_B

    @property
    def r(self) -> int:
        """The rank."""
        return self.lora_A.shape[0]

    def merge(self, weight: Tensor) -> Tensor:
        """W + s B A, in the type of W and computed in no less than float32, whatever autocast says."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(weight.device.type, enabled=False):
            factors = (factor.to(weight.device, wide) for factor in (self.lora_B, self.lora_A))
            return torch.addmm(weight.to(wide), *factors, alpha=self.scaling).to(weight.dtype)


@dataclass(frozen=True)
class Adapter:
    """`maps`: the change of each linear map's matrix, by the name of its module; `dropout`: of the input of A, in
    training."""

    maps: Mapping[str, LowRank]
    dropout: float = 0.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The factors by name, as PEFT's files have them: `blocks.0.learners.0.project.lora_A.weight`."""
        return {
            f"{name}.{factor}.weight": getattr(change, factor)
            for name, change in self.maps.items()
            for factor in FACTORS
        }

    def compact(self, dtype: torch.dtype) -> Adapter:
        """The adapter with its factors in `dtype`, one behind the other in memory, B by its columns: in the order in
        which a pass that decodes reads them."""
        buffer = torch.empty(sum(factor.numel() for factor in self.tensors.values()), dtype=dtype)
        maps, first = {}, 0
        for name, change in self.maps.items():
            views = []
            for factor in (change.lora_A, change.lora_B.t()):
                view = buffer[first : first + factor.numel()].view(factor.shape)
                views.append(view.copy_(factor))
                first += factor.numel()
            maps[name] = LowRank(views[0], views[1].t(), change.scaling)
        return Adapter(maps, self.dropout)

    def check(self, name: str, shape: torch.Size | None, source: Path | str) -> None:
        """InputError where the change of `name` does not fit a matrix of `shape` (None: there is none)."""
        change, hint = self.maps[name], "it is an adapter of another model"
        if shape is None:
            raise InputError(f"{source} changes {name}, which the model has not", hint)
        own = [change.lora_B.shape[0], change.lora_A.shape[1]]
        if own != list(shape):
            raise InputError(f"{source} changes {name} as a matrix {own}, and the model's is {list(shape)}", hint)


class MergedTensors(Mapping[str, Tensor]):
    """A model's tensors with an adapter merged into them, each computed when it is read."""

    def __init__(self, base: Mapping[str, Tensor], adapter: Adapter, source: Path | str = "the adapter") -> None:
        self._base, self._adapter, self._source = base, adapter, source
        for name in adapter.maps:
            if f"{name}.weight" not in base:
                adapter.check(name, None, source)

    def __getitem__(self, name: str) -> Tensor:
        tensor, module = self._base[name], name.removesuffix(".weight")
        if module == name or module not in self._adapter.maps:
            return tensor
        self._adapter.check(module, tensor.shape, self._source)
        return self._adapter.maps[module].merge(tensor)

    def extents(self, name: str) -> list[Extent] | None:
        """Where the numbers of a tensor stand in the base's files; None for one that is merged."""
        find = getattr(self._base, "extents", None)
        return None if find is None or name.removesuffix(".weight") in self._adapter.maps else find(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not merged for that."""
        return tuple(self._base[name].shape)

    def __contains__(self, name: object) -> bool:
        return name in self._base  # without a merge for the answer

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)
