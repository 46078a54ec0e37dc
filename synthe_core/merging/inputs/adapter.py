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

from synthe_core.adapters.peft import BASE_DIGEST, PREFIX, WEIGHTS
from synthe_core.adapters.peft_config import CONFIG, read_config
from synthe_core.errors import InputError
from synthe_core.merging.hashed_file import HashedFile
from synthe_core.storage.hub.model_id import hub_id
from synthe_core.storage.hub.snapshot import model_name, source_name

PART = re.compile(
    r"^(?P<module>.+?)\.(lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.\w+)*?(?P<bias>\.bias)?(\.weight)?"
    r"|token_adapter\.(?P<rows>trainable_tokens_delta)(\.\w+)?)$"
)


class Factors(NamedTuple):
    """W + scale up down, float32: down [r, in], up [out, r]; transposed if the base stores W as [in, out].

    magnitude [out]: with DoRA, the norms to which the rows of the sum are scaled. moved: the initialisation that took a
    part of the base's weight into the factors, "pissa" or "olora".
    """

    down: Tensor
    up: Tensor
    scale: float
    transposed: bool = False
    magnitude: Tensor | None = None
    moved: str | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def product(self) -> Tensor:
        """The difference from the base's weight, in its layout."""
        product = (self.up @ self.down).mul_(self.scale)
        return product.T if self.transposed else product

    def applied(self, weight: Tensor) -> Tensor:
        """The base's weight with the adapter merged in."""
        total = self._remaining(weight) + self.product()
        if self.magnitude is None:
            return total
        rows = total.T if self.transposed else total
        rows = rows * (self.magnitude / rows.norm(dim=1))[:, None]
        return rows.T if self.transposed else rows

    def _remaining(self, weight: Tensor) -> Tensor:
        """The base's weight without the part that the factors began as.

        PiSSA (Meng et al. 2024): its `rank` largest singular values. OLoRA (Büyükakyüz 2024): scale times the first
        `rank` columns of Q and rows of R of its QR decomposition.
        """
        if self.moved == "pissa":
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            return weight - (left[:, : self.rank] * values[: self.rank]) @ right[: self.rank]
        if self.moved == "olora":
            columns, rows = torch.linalg.qr(weight)
            return weight - self.scale * (columns[:, : self.rank] @ rows[: self.rank])
        return weight


class Adapter:
    """An adapter's folder. Its tensors are addressed by the names of the base's tensors."""

    kind = "adapter"

    def __init__(self, path: Path, named: str) -> None:
        self.path, self.named = path, named
        self.name = model_name(path)
        self.config = read_config(path / CONFIG, merging=True)
        if not (path / WEIGHTS).is_file():
            raise InputError(f"{path} has no {WEIGHTS}", "save the adapter as safetensors: PEFT's save_pretrained does")
        self.file = HashedFile(path / WEIGHTS)
        self.whole: dict[str, str] = {}
        self.biases: dict[str, str] = {}
        self.rows: dict[str, str] = {}
        self._parts: dict[str, dict[str, str]] = {}
        for stored, info in self.file.tensors.items():
            if not info.floats:
                raise InputError(f"{self.file.path}: {stored} has no floats", "quantised adapters cannot be merged")
            self._sort(stored)
        for name, parts in self._parts.items():
            kinds = parts.keys() - {"magnitude_vector"}
            if kinds not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
                raise InputError(f"{self.file.path}: {name} has no pair of factors", "the adapter is damaged")
            self._shape(name)
            self._check_rank(name)
        self._check_extras()

    @classmethod
    def claims(cls, path: Path) -> bool:
        return (path / CONFIG).is_file()

    @property
    def base(self) -> str | None:
        """The base that the adapter's config names, of a model of the hub with its revision."""
        base, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        return f"{base}@{revision}" if base and revision and hub_id(base) else base or None

    @property
    def recorded_base(self) -> str | None:
        """The digest of the weights that the adapter was trained on, if it records one."""
        return self.file.metadata.get(BASE_DIGEST)

    @property
    def adapted(self) -> Collection[str]:
        """The base's tensors that have factors."""
        return self._parts.keys()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes that the base's tensors must have, of all that the adapter adapts or replaces."""
        added = {name: self._shape(name) for name in self._parts}
        stored = self.whole | self.biases
        return added | {name: self.file.tensors[each].shape for name, each in stored.items()}

    @property
    def beyond_factors(self) -> str | None:
        """What the adapter has that factors alone cannot express; None if it is W + scale B A."""
        if self.whole:
            return f"replaces {next(iter(self.whole))} as a whole"
        if self.biases:
            return f"changes {next(iter(self.biases))} (lora_bias)"
        if self.rows:
            return f"replaces rows of {next(iter(self.rows))} (trainable_token_indices)"
        if self.config.get("use_dora"):
            return "scales rows (DoRA)"
        if self.config.moved:
            return f"moves a part of the base's weights (init_lora_weights '{self.config.moved}')"
        return None

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
        return Factors(parts["A"], parts["B"], self.scale(name), self.transposed, magnitude, self.config.moved)

    def replaced(self, name: str) -> Tensor:
        """A tensor that the adapter stores as a whole."""
        return self.file.read(self.whole[name])

    def added_bias(self, name: str) -> Tensor:
        """What the adapter adds to a bias of the base: lora_bias is inside the scale."""
        module = name.removesuffix(".bias")
        return self.file.read(self.biases[name]).to(torch.float32) * self.scale(f"{module}.weight")

    def token_rows(self, name: str) -> tuple[list[int], Tensor]:
        """Rows of an embedding, and what the adapter replaces them by."""
        return self._indices(name), self.file.read(self.rows[name])

    def scale(self, name: str) -> float:
        """alpha / r, or alpha / sqrt(r) with use_rslora; alpha_pattern overrides alpha by module."""
        return self.config.scaling(name.removesuffix(".weight"), self.rank(name))

    @property
    def transposed(self) -> bool:
        """Whether the base stores its matrices as [in, out]."""
        return bool(self.config.get("fan_in_fan_out"))

    def _sort(self, stored: str) -> None:
        """Puts a tensor of the file where its name says it belongs."""
        name = stored.removeprefix(PREFIX)
        part = PART.match(name)
        if part is None:
            if ".lora_" in name or ".token_adapter." in name:
                raise InputError(f"{self.file.path}: {stored} is no part of LoRA", "the adapter is of another kind")
            self.whole[name.replace(".base_layer.", ".")] = stored  # an embedding saved beside its factors
        elif part["rows"]:
            self.rows[f"{part['module']}.weight"] = stored
        elif part["bias"]:
            if part["part"] != "B":
                raise InputError(f"{self.file.path}: {stored} is no part of LoRA", "the adapter is of another kind")
            self.biases[f"{part['module']}.bias"] = stored
        else:
            self._parts.setdefault(f"{part['module']}.weight", {})[part["part"]] = stored

    def _indices(self, name: str) -> list[int]:
        """The rows of an embedding that trainable_token_indices names: a list, or lists by module."""
        named = self.config.get("trainable_token_indices")
        module = name.removesuffix(".weight")
        if isinstance(named, dict):
            named = next((rows for key, rows in named.items() if f".{module}".endswith(f".{key}")), None)
        count = self.file.tensors[self.rows[name]].shape[0]
        if not isinstance(named, list) or len(named) != count or not all(type(row) is int for row in named):
            raise InputError(
                f"{self.config.path}: trainable_token_indices does not name the {count} rows of {name}",
                "the adapter is damaged",
            )
        return named

    def _check_rank(self, name: str) -> None:
        rank, expected = self.rank(name), self.config.rank(name.removesuffix(".weight"))
        if rank != expected:
            raise InputError(
                f"{self.file.path}: the factors of {name} have rank {rank}, and {CONFIG} gives it {expected}",
                "the adapter is damaged",
            )

    def _check_extras(self) -> None:
        """InputError where the config names parts that the file has not, or the file has parts that it does not name.

        PEFT leaves out the one, and begins anew with the other.
        """
        rows = {f"{name.removesuffix('.bias')}.weight" for name in self.biases}
        magnitudes = {name for name, parts in self._parts.items() if "magnitude_vector" in parts}
        for key, having in (("lora_bias", rows), ("use_dora", magnitudes)):
            expected = set(self._parts) if self.config.get(key) else set()
            if odd := sorted(having ^ expected):
                said = "says" if expected else "does not say"
                raise InputError(
                    f"{self.file.path} and {CONFIG}, which {said} {key}, differ in {odd[0]}", "it is damaged"
                )
        if bool(self.rows) != bool(self.config.get("trainable_token_indices")):
            raise InputError(f"{self.file.path} and {CONFIG} differ in trainable_token_indices", "it is damaged")

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
        return shape[::-1] if embedding or self.transposed else shape

    def provenance(self) -> dict[str, Any]:
        """The manifest's entry of this parent."""
        digest = self.file.digest()
        files = {WEIGHTS: digest and digest.model_dump()}
        return {"model": self.named, "path": source_name(self.path), "kind": self.kind, "files": files}
