"""A model with an adapter merged into its tensors while they are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.merging.hashed_file import HashedFile, TensorInfo
from synthe_core.merging.inputs.adapter import Adapter
from synthe_core.merging.inputs.model import Model, View

OTHER_BASE = "the adapter is for another base"


class MergedView(View):
    """A base with an adapter merged into each tensor while it is read."""

    def __init__(self, base: Model, adapter: Adapter) -> None:
        super().__init__(base)
        self.adapter = adapter
        self.named = adapter.named
        twice = {copy: source for copy, source in base.tied.items() if self._replaces_alike(copy, source)}
        for name, shape in adapter.shapes.items():
            if name not in twice:
                self._check(name, shape)
        for name in adapter.rows:
            self._check_rows(name)
        self._check_tied(set(twice.values()))

    @property
    def files(self) -> list[HashedFile]:
        return [*self.inner.files, self.adapter.file]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The base's, with changed ones in float32, so that the adapter's difference is not rounded away."""
        changed = {*self.adapter.adapted, *self.adapter.biases, *self.adapter.rows}
        return {
            name: info._replace(dtype=torch.float32) if name in changed else info
            for name, info in self.inner.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        adapter = self.adapter
        own = adapter.replaced(name) if name in adapter.whole else self.inner.read(name)
        if name in adapter.biases:
            return own.to(torch.float32) + adapter.added_bias(name)
        if name in adapter.adapted:
            own = adapter.factors(name).applied(own.to(torch.float32))
        if name in adapter.rows:
            rows, values = adapter.token_rows(name)
            own = own.to(torch.float32).index_copy(0, torch.tensor(rows), values.to(torch.float32))
        return own

    def provenance(self) -> dict[str, Any]:
        return self.adapter.provenance() | {"base": self.inner.provenance()}

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        """InputError if the base has no tensor `name` of this shape."""
        base, adapter = self.inner, self.adapter
        if name in base.tied:
            raise InputError(
                f"{adapter.named} adapts {name}, which is the same matrix as {base.tied[name]} in {base.named}",
                "merged, it would change both: use the adapter beside its base, with PEFT",
            )
        if name not in base.tensors and name in adapter.biases:
            raise InputError(
                f"{adapter.named} changes {name} (lora_bias), which {base.named} has not",
                "use the adapter beside its base, with PEFT, which cannot merge it either",
            )
        if name not in base.tensors:
            raise InputError(f"{adapter.named} adapts {name}, which {base.named} has not", OTHER_BASE)
        if base.tensors[name].shape != shape:
            raise InputError(
                f"{name} is {list(base.tensors[name].shape)} in {base.named} and {list(shape)} in {adapter.named}",
                OTHER_BASE,
            )

    def _check_rows(self, name: str) -> None:
        base, adapter = self.inner, self.adapter
        indices = adapter._indices(name)
        width = adapter.file.tensors[adapter.rows[name]].shape[1:]
        shape = base.tensors[name].shape if name in base.tensors else ()
        if not shape or shape[1:] != width or not all(0 <= row < shape[0] for row in indices):
            raise InputError(f"{adapter.named} replaces rows of {name} that {base.named} has not", OTHER_BASE)

    def _replaces_alike(self, copy: str, source: str) -> bool:
        """Whether the adapter stores the same tensor for both places of a tied matrix."""
        whole, file = self.adapter.whole, self.adapter.file
        return copy in whole and source in whole and file.equal(whole[copy], file, whole[source])

    def _check_tied(self, replaced: set[str]) -> None:
        """InputError for an adapter of one of two modules that share a matrix: merged, it would change both.

        replaced: the matrices that it replaces in both.
        """
        changed = {*self.adapter.adapted, *self.adapter.whole} - replaced
        for copy, source in self.inner.tied.items():
            if source in changed and not self.adapter.config.get("ensure_weight_tying"):
                raise InputError(
                    f"{self.adapter.named} adapts {source}, which is the same matrix as {copy} in {self.inner.named}",
                    "merged, it would change both; if it was trained so, set ensure_weight_tying in its config",
                )
