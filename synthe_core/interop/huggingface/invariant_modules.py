"""Batch invariance of transformers' models: their modules that have a primitive of ours are replaced by ones that call
it, and a check on the model finds out whether that covers all it computes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synthe_core.hardware.execution import active_context
from synthe_core.layers.projection import Linear
from synthe_core.ops.activations import gelu, sigmoid, silu, softplus
from synthe_core.ops.dispatch import PRIMITIVES
from synthe_core.ops.linear import linear
from synthe_core.ops.scaled_dot_product_attention import scaled_dot_product_attention

IMPLEMENTATION = "synthe"  # its name in transformers' registry of attention functions
PRODUCTS = {"matmul", "__matmul__", "bmm", "mm", "einsum", "baddbmm", "conv1d", "_grouped_mm", "grouped_mm_fallback"}
ACTIVATIONS = {"mish", "glu", "logsigmoid", "silu_", "sigmoid_"}  # made of the ones that are primitives
CHANGING_ANGLES = ("dynamic", "longrope")  # the longest row decides the angles of all


class Activation(nn.Module):
    """y = function(x)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class TransposedLinear(nn.Module):
    """y = x W + b of transformers' `Conv1D`, W [I, O], by the operator `linear`."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.weight, Tensor) and isinstance(self.bias, Tensor)
        return linear(x, self.weight.t(), self.bias)


def use_primitives(inner: Any) -> None:
    """Replaces, in a model of transformers, linear maps and activations by modules that call the primitives, with the
    same parameters; and sdpa by an attention function that calls its primitive.

    Outside of a batch-invariant context they compute what transformers computes.
    """
    replacements: dict[int, nn.Module] = {}
    for parent in list(inner.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = replacements.setdefault(id(child), _replacement(child))
    if inner.config._attn_implementation == "sdpa":
        _register_attention()
        inner.set_attn_implementation(IMPLEMENTATION)


def _replacement(module: nn.Module) -> nn.Module:
    """The module that computes the same by primitives; `module` itself where there is none."""
    from transformers import activations
    from transformers.pytorch_utils import Conv1D

    functions: Mapping[type[nn.Module], Callable[[Tensor], Tensor]] = {
        nn.SiLU: silu,
        nn.Sigmoid: sigmoid,
        activations.SiLUActivation: silu,
        activations.GELUActivation: gelu,
        activations.GELUTanh: partial(gelu, approximate="tanh"),
        activations.QuickGELUActivation: _quick_gelu,
    }
    kind = type(module)  # a subclass may have a forward of its own
    if type(module) is nn.Linear:
        return Linear.sharing(module)
    if kind is Conv1D:
        return TransposedLinear(module)
    if kind is nn.GELU:
        return Activation(partial(gelu, approximate=module.approximate))
    if kind is nn.Softplus and (module.beta, module.threshold) == (1, 20):
        return Activation(softplus)
    return Activation(functions[kind]) if kind in functions else module


def _quick_gelu(x: Tensor) -> Tensor:
    return x * sigmoid(1.702 * x)


def _register_attention() -> None:
    """Registers the attention function and the function that makes its masks with transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, partial(_attention, AttentionInterface()["sdpa"]))
    AttentionMaskInterface.register(IMPLEMENTATION, partial(_mask, AttentionMaskInterface()["sdpa"]))


def _mask(sdpa_mask: Callable[..., Tensor | None], *args: Any, **kwargs: Any) -> Tensor | None:
    """The bool mask [B, 1, T, S] of a pass. In a batch-invariant context it is always made: whether it can be left out
    depends on all rows."""
    if active_context().batch_invariant:
        kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(*args, **kwargs)


def _attention(
    sdpa: Callable[..., tuple[Tensor, None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """o [B, T, H, V] of q [B, H, T, K], k [B, G, S, K] and v [B, G, S, V]. It is transformers' own where the context is
    not batch-invariant, and for attention that the primitive does not have (a bias of positions, no mask)."""
    special = attention_mask is None or attention_mask.dtype != torch.bool or options.get("position_bias") is not None
    if special or not active_context().batch_invariant:
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, **options)
    root = query.shape[-1] ** 0.5
    if scaling is not None and scaling != 1 / root:
        query = query * (scaling * root)
    grouped = query.shape[1] != key.shape[1]
    y = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, enable_gqa=grouped)
    return y.transpose(1, 2).contiguous(), None


class ForeignCalls(TorchFunctionMode):
    """Within the block, the names of products and activations of torch that are called outside of our operators.

    Equal bits in one example do not show that such a call is batch-invariant: it may depend on sizes and threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watched = PRODUCTS | ACTIVATIONS | set(PRIMITIVES)
        self.names: set[str] = set()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in self.watched and not _is_outer(name, args) and not _called_by_operator():
            self.names.add(name)
        return function(*args, **(kwargs or {}))


def _is_outer(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a product sums over one number only, as that of positions and frequencies: such a product is exact."""
    return name in ("matmul", "__matmul__", "bmm") and args[0].shape[-1] == 1


def _called_by_operator() -> bool:
    """Whether the first caller outside of torch and this file is in `synthe_core.ops`."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = frame.f_globals.get("__name__", "")
        if module != __name__ and module.partition(".")[0] != "torch":
            return module.startswith("synthe_core.ops.")
        frame = frame.f_back
    return False


def angles_depend_on_batch(inner: nn.Module) -> bool:
    """Whether the model's rotary angles depend on the longest row of a pass."""
    types = (getattr(module, "rope_type", None) for module in inner.modules())
    names = [name for each in types for name in (each.values() if isinstance(each, dict) else [each])]
    return any(str(name).startswith(CHANGING_ANGLES) for name in names)
