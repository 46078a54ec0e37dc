"""A model as `train.lora` trains it, for counting its memory: frozen, its matrices quantised, with an adapter.

Its matrices have no numbers of a real model: zeros, or no storage at all. Formats and sizes are those of training.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from synthe_core.adapters.lora_linear import attach
from synthe_core.adapters.targets import new_adapter
from synthe_core.errors import InputError
from synthe_core.model.classifier import Model, build_model
from synthe_core.model.quantized_model import quantizable_matrices, set_matrix
from synthe_core.model.without_storage import without_storage
from synthe_core.quantization.matrix import QuantizedMatrix
from synthe_core.quantization.quantize import AS_STORED, quantize, vocabulary_format
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, weights
from synthe_core.storage.checkpoint.quantized import VOCABULARY, set_tensor, stored_matrix

SMALL = 0.02  # what weights have that are not quantised


class FrozenBase:
    """How the model under the adapter of a recipe is held in memory. checkpoint: the model's, which AS_STORED needs.

    InputError for AS_STORED without one.
    """

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint | None = None) -> None:
        self.recipe, self.lora = recipe, recipe.train.lora
        self.checkpoint = None if checkpoint is None else checkpoint.base or checkpoint
        self._stored: dict[str, QuantizedMatrix] = {}
        if self.lora is not None and self.lora.quantize == AS_STORED and checkpoint is None:
            raise InputError(
                "train.lora.quantize: how matrices are stored is known of a model only, and this is a recipe",
                "name the model's file in place of the recipe",
            )

    def build(self, spec: Any, vocab: int, device: torch.device | str) -> Model:
        """The model of `spec` on a device as it is trained; without `train.lora` as it is built."""
        recompute = self.recipe.runtime.recompute
        if self.lora is None or self.lora.quantize is None:
            model = build_model(spec, vocab, recompute).to(device)
            return model if self.lora is None else self.adapted(model, device)
        with without_storage():
            model = build_model(spec, vocab, recompute)
        return self.adapted(model, device)

    def adapted(self, model: Model, device: torch.device | str) -> Model:
        """The model, frozen and quantised, with an adapter."""
        assert self.lora is not None
        if self.lora.quantize is not None:
            for name, weight in quantizable_matrices(model).items():
                set_matrix(model, weight, _empty(self._matrix(name, weight), device))
        if torch.device(device).type != "meta":
            for name, tensor in weights(model).items():
                if tensor.is_meta:
                    set_tensor(model, name, torch.full(tensor.shape, SMALL, dtype=tensor.dtype))
        model = model.to(device)
        with torch.random.fork_rng(devices=[]):
            attach(model, new_adapter(model, self.lora), trainable=True)
        return model

    def _matrix(self, name: str, weight: Tensor) -> QuantizedMatrix:
        """The matrix `name` on the device `meta`."""
        assert self.lora is not None and self.lora.quantize is not None
        if self.lora.quantize != AS_STORED:
            form = vocabulary_format(self.lora.quantize) if name in VOCABULARY else self.lora.quantize
            shape = torch.empty(weight.shape, device="meta")
            return quantize(shape, form, double_quant=self.lora.double_quant and form == "nf4")
        if name not in self._stored:
            assert self.checkpoint is not None
            self._stored[name] = stored_matrix(self.checkpoint.tensors, name).to("meta")
            if (release := getattr(self.checkpoint.tensors, "release", None)) is not None:
                release()
        return self._stored[name]


def _empty(matrix: QuantizedMatrix, device: torch.device | str) -> QuantizedMatrix:
    """A matrix of the same format with zeros for codes and scales."""
    if torch.device(device).type == "meta":
        return matrix
    made = copy.deepcopy(matrix)
    for module in made.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
    return made
