"""A LoRA adapter in PEFT's format: adapter_config.json and adapter_model.safetensors.

Every adapted module has A [r, in] and B [out, r]; the weight of the base becomes W + scale B A. Tensors that training
replaced as a whole (`modules_to_save`, biases) are in the same file under their own names.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.merging.hashed_file import HashedFile, TensorInfo
from synthe_core.merging.inputs.model import Model, View
from synthe_core.storage.json_reader import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PART = re.compile(r"^(?P<module>.+?)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.\w+)*$")


class Factors(NamedTuple):
    """W + scale up down, float32: down [r, in], up [out, r]; transposed if the base stores W as [in, out].

    magnitude [out]: with DoRA, the norms to which the rows of the sum are scaled.
    """

    down: Tensor
    up: Tensor
    scale: float
    transposed: bool = False
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def product(self) -> Tensor:
        """The difference from the base's weight, in its layout."""
        product = (self.up @ self.down).mul_(self.scale)
        return product.T if self.transposed else product

    def applied(self, weight: Tensor) -> Tensor:
        """The base's weight with the adapter merged in."""
        total = weight + self.product()
        if self.magnitude is None:
            return total
        rows = total.T if self.transposed else total
        rows = rows * (self.magnitude / rows.norm(dim=1))[:, None]
        return rows.T if self.transposed else rows


class Adapter:
    """An adapter's folder. Its tensors are addressed by the names of the base's tensors."""

    kind = "adapter"

    def __init__(self, path: Path, named: str) -> None:
        self.path, self.named = path, named
        self.name = path.resolve().name
        self.config = read_json(path / CONFIG)
        kind = str(self.config.get("peft_type", "LORA")).upper()
        if kind != "LORA":
            raise InputError(f"{path} is an adapter of the kind {kind}", "synthe merges LoRA adapters")
        if not (path / WEIGHTS).is_file():
            raise InputError(f"{path} has no {WEIGHTS}", "save the adapter as safetensors: PEFT's save_pretrained does")
        self.file = HashedFile(path / WEIGHTS)
        self.whole: dict[str, str] = {}
        self._parts: dict[str, dict[str, str]] = {}
        for stored in self.file.tensors:
            name = stored.removeprefix(PREFIX)
            if part := PART.match(name):
                self._parts.setdefault(f"{part['module']}.weight", {})[part["part"]] = stored
            else:
                self.whole[name.replace(".base_layer.", ".")] = stored  # an embedding saved beside its factors
        for name, parts in self._parts.items():
            kinds = parts.keys() - {"magnitude_vector"}
            if kinds not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
                raise InputError(f"{self.file.path}: {name} has no pair of factors", "the adapter is damaged")
            self._shape(name)

    @classmethod
    def claims(cls, path: Path) -> bool:
        return (path / CONFIG).is_file()

    @property
    def base(self) -> str | None:
        """The base that the adapter's config names."""
        return self.config.get("base_model_name_or_path") or None

    @property
    def adapted(self) -> Collection[str]:
        """The base's tensors that have factors."""
        return self._parts.keys()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes that the base's tensors must have, of all that the adapter adapts or replaces."""
        added = {name: self._shape(name) for name in self._parts}
        return added | {name: self.file.tensors[stored].shape for name, stored in self.whole.items()}

    def rank(self, name: str) -> int:
        """The rank of a tensor's factors."""
        parts = self._parts[name]
        return self.file.tensors[parts.get("A") or parts["embedding_A"]].shape[0]

    def embeds(self, name: str) -> bool:
        """Whether the module is an embedding, whose factors have other names and another layout."""
        return "embedding_A" in self._parts[name]

    def factors(self, name: str) -> Factors:
        """The factors of a tensor of the base."""
        parts = {part: self.file.read(stored).to(torch.float32) for part, stored in self._parts[name].items()}
        magnitude = parts.get("magnitude_vector")
        if "embedding_A" in parts:  # A [r, vocabulary], B [width, r]; the base is [vocabulary, width]
            return Factors(parts["embedding_A"], parts["embedding_B"], self.scale(name), True, magnitude)
        return Factors(parts["A"], parts["B"], self.scale(name), self._transposed, magnitude)

    def replaced(self, name: str) -> Tensor:
        """A tensor that the adapter stores as a whole."""
        return self.file.read(self.whole[name])

    def scale(self, name: str) -> float:
        """alpha / r, or alpha / sqrt(r) with use_rslora; alpha_pattern overrides alpha by module."""
        rank = self.rank(name)
        alpha = self._pattern("alpha_pattern", name, self.config.get("lora_alpha", rank))
        try:
            return float(alpha) / (rank**0.5 if self.config.get("use_rslora") else rank)
        except (TypeError, ValueError):
            raise InputError(f"{self.path / CONFIG}: lora_alpha is {alpha!r}, and should be a number") from None

    @property
    def _transposed(self) -> bool:
        return bool(self.config.get("fan_in_fan_out"))

    def _pattern(self, key: str, name: str, default: Any) -> Any:
        module = name.removesuffix(".weight")
        patterns = self.config.get(key) or {}
        return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), default)

    def _shape(self, name: str) -> tuple[int, ...]:
        parts = self._parts[name]
        embedding = "embedding_A" in parts
        down, up = (self.file.tensors[parts[f"embedding_{p}" if embedding else p]] for p in "AB")
        if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
            raise InputError(
                f"{self.file.path}: the factors of {name} are {list(down.shape)} and {list(up.shape)}, and should be "
                "[r, in] and [out, r]",
                "adapters of convolutions cannot be merged",
            )
        shape = (up.shape[0], down.shape[1])
        return shape[::-1] if embedding or self._transposed else shape

    def provenance(self) -> dict[str, Any]:
        """The manifest's entry of this parent."""
        digest = self.file.digest()
        files = {WEIGHTS: digest and digest.model_dump()}
        return {"model": self.named, "path": str(self.path), "kind": self.kind, "files": files}


class MergedView(View):
    """A base with an adapter merged into each tensor while it is read."""

    def __init__(self, base: Model, adapter: Adapter) -> None:
        super().__init__(base)
        self.adapter = adapter
        self.named = adapter.named
        for name, shape in adapter.shapes.items():
            if name not in base.tensors:
                raise InputError(
                    f"{adapter.named} adapts {name}, which {base.named} has not", "the adapter is for another base"
                )
            if base.tensors[name].shape != shape:
                raise InputError(
                    f"{name} is {list(base.tensors[name].shape)} in {base.named} and {list(shape)} in {adapter.named}",
                    "the adapter is for another base",
                )

    @property
    def files(self) -> list[HashedFile]:
        return [*self.inner.files, self.adapter.file]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The base's, with adapted ones in float32, so that the adapter's difference is not rounded away."""
        adapted = self.adapter.adapted
        return {
            name: info._replace(dtype=torch.float32) if name in adapted else info
            for name, info in self.inner.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        own = self.adapter.replaced(name) if name in self.adapter.whole else self.inner.read(name)
        if name in self.adapter.adapted:
            return self.adapter.factors(name).applied(own.to(torch.float32))
        return own

    def provenance(self) -> dict[str, Any]:
        return self.adapter.provenance() | {"base": self.inner.provenance()}
