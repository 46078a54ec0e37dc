"""A model whose matrices stay quantised: those of the linear maps in its blocks, of its embedding and of its head."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from synthe_core.layers.projection import Linear
from synthe_core.layers.quantized import QuantizedEmbedding, QuantizedLinear
from synthe_core.model.head import Head, QuantizedHead
from synthe_core.model.language_model import Backbone
from synthe_core.quantization.formats import quantizable
from synthe_core.quantization.matrix import QuantizedMatrix


def quantizable_matrices(model: Backbone) -> dict[str, Tensor]:
    """The weights that `set_matrix` takes, by their first names in the state dict."""
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)
    held = (module._parameters["weight"] for _, _, module in _places(model))
    return {names[id(w)]: w for w in held if w is not None and quantizable(w.dtype, tuple(w.shape))}


def set_matrix(model: Backbone, weight: Tensor, matrix: QuantizedMatrix) -> None:
    """Puts a quantised matrix in the place of `weight`, one of `quantizable_matrices`, wherever the model has it."""
    for parent, name, module in list(_places(model)):
        if module._parameters["weight"] is weight:
            parent._modules[name] = _quantized(module, matrix)


def _places(model: Backbone) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, module) of every map and embedding that a quantised one can stand for. A subclass, such as a map
    with adapters, computes something else."""
    for parent in model.blocks.modules():
        for name, child in parent._modules.items():
            if type(child) in (nn.Linear, Linear):
                yield parent, name, child  # type: ignore[misc]
    for name, child in model._modules.items():
        if type(child) is Head or (type(child) is nn.Embedding and name == "embedding"):
            yield model, name, child


def _quantized(module: nn.Module, matrix: QuantizedMatrix) -> nn.Module:
    if isinstance(module, Head):
        return QuantizedHead(module, matrix)
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(matrix)
    assert isinstance(module, nn.Linear)
    return QuantizedLinear(module, matrix)
