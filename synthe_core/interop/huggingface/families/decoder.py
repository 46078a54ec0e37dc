"""The parts that published Transformers have in common: attention and an MLP under the names of Llama's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from synthe_core.interop.huggingface.families.plan import Origin, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.families.rotary import exact_length
from synthe_core.interop.huggingface.published import Config

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""Our activations by their published names."""


def activation(config: Config, key: str = "hidden_act", default: str = "silu") -> str:
    if (name := str(config.get(key, default))) not in ACTIVATIONS:
        raise config.unsupported(key, name, ACTIVATIONS)
    return ACTIVATIONS[name]


def layer_places(config: Config, prefix: str = "model.layers") -> Iterator[tuple[int, str]]:
    """The index of each layer, and what the names of its tensors begin with."""
    for index in range(config.size("num_hidden_layers")):
        yield index, f"{prefix}.{index}"


def attention_keys(
    config: Config, *, size: int | None = None, groups: int | None = None, **keys: Any
) -> dict[str, Any]:
    """The specification of attention, without norms of queries and keys by default.

    size, groups: the heads' size and the key heads where the config has neither; by default the width over the heads,
    and as many as heads.
    """
    width, heads = config.size("hidden_size"), config.size("num_attention_heads")
    stated = "num_key_value_heads" in config.values
    return {
        "type": "attention",
        "heads": heads,
        "kv_heads": config.size("num_key_value_heads", heads if stated or groups is None else groups),
        "head_size": config.size("head_dim", size or max(1, width // heads)),
        "qk_norm": False,
        **keys,
    }


def head_size(config: Config) -> int:
    """The width over the heads, in an architecture without `head_dim`."""
    return max(1, config.size("hidden_size") // config.size("num_attention_heads"))


def optional(config: Config, key: str, default: float | None) -> float | None:
    """A number above 0, None where the key is null, `default` where it is absent."""
    return None if config.values.get(key, default) is None else config.number(key, default)


def attention_tensors(
    inner: str, keys: Mapping[str, Any], names: Sequence[str] = ("q_proj", "k_proj", "v_proj"), out: str = "o_proj"
) -> dict[str, Origin]:
    """The tensors of attention from those of `inner`, whose queries, keys and values are maps of their own."""
    bias = keys.get("bias", "none")
    rows = qkv_rows(keys)
    tensors = linear("qkv", *(f"{inner}.{name}" for name in names), bias=bias in ("qkv", "all"), rows=rows)
    tensors |= linear("out", f"{inner}.{out}", bias=bias in ("out", "all"))
    if keys["qk_norm"] in ("weighted", "joint"):
        tensors |= {name: origin(f"{inner}.{name}.weight") for name in ("q_norm", "k_norm")}
    return tensors


def qkv_rows(keys: Mapping[str, Any]) -> tuple[int, int, int]:
    """The rows of the maps of queries, keys and values."""
    queries, others = (keys[key] * keys["head_size"] for key in ("heads", "kv_heads"))
    return queries, others, others


def mlp_keys(config: Config, *, key: str = "hidden_act", default: str = "silu", **keys: Any) -> dict[str, Any]:
    """The specification of an MLP. key: that of its activation; default: the activation where it is absent."""
    return {
        "type": "mlp",
        "hidden": config.size("intermediate_size"),
        "activation": activation(config, key, default),
        **keys,
    }


def mlp_tensors(inner: str, keys: Mapping[str, Any], up: str = "up_proj", down: str = "down_proj") -> dict[str, Origin]:
    """The tensors of an MLP from those of `inner`; its gate is `gate_proj`."""
    bias = keys.get("bias", False)
    into = ("gate_up", f"{inner}.gate_proj", f"{inner}.{up}") if keys.get("gated", True) else ("up", f"{inner}.{up}")
    return linear(*into, bias=bias) | linear("out", f"{inner}.{down}", bias=bias)


def without_pairs(matrix: Tensor, heads: int, size: int) -> Tensor:
    """The rows of `heads` heads whose first `size` channels a published model rotates in pairs of neighbours, in the
    order in which `attention` rotates the same pairs: their first channels, then their second."""
    rows = matrix.unflatten(0, (heads, -1))
    pairs = rows[:, :size].unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat([pairs, rows[:, size:]], 1).flatten(0, 1)


def interleaved(tensors: dict[str, Origin], keys: Mapping[str, Any]) -> dict[str, Origin]:
    """The tensors of attention from those of a model that rotates pairs of neighbours."""
    size = keys.get("rope_size") or keys["head_size"]

    def qkv(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([without_pairs(q, keys["heads"], size), without_pairs(k, keys["kv_heads"], size), v])

    return {name: each._replace(make=qkv) if name.startswith("qkv.") else each for name, each in tensors.items()}


def decoder_layers(
    config: Config,
    attention: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    mlp: Mapping[str, Any],
    *,
    norm: Callable[[str], dict[str, Origin]] = norm,
    before: Sequence[str | None] = ("input_layernorm", "post_attention_layernorm"),
    after: Sequence[str | None] = (None, None),
    attend: Callable[[str, Mapping[str, Any]], dict[str, Origin]] = attention_tensors,
    feed: Callable[[str, Mapping[str, Any]], dict[str, Origin]] = mlp_tensors,
    prefix: str = "model.layers",
    inner: Sequence[str] = ("self_attn", "mlp"),
) -> list[list[Part]]:
    """Layers of attention and an MLP of these specifications, that of attention the same in all layers or one for each.

    norm: the tensors of a norm, by its published name. before, after: the names of the norms before and after the two,
    None for one that is not there. attend, feed: their tensors from the published names in `inner`.
    """
    layers = []
    for index, place in layer_places(config, prefix):
        keys = attention if isinstance(attention, Mapping) else attention[index]
        tensors = attend(f"{place}.{inner[0]}", keys), feed(f"{place}.{inner[1]}", mlp)
        norms = [[{} if name is None else norm(f"{place}.{name}") for name in names] for names in (before, after)]
        layers.append(
            [
                Part(dict(spec), first, part, second)
                for spec, part, first, second in zip((keys, mlp), tensors, *norms, strict=True)
            ]
        )
    return layers


def transformer_plan(config: Config, layers: list[list[Part]], **options: Any) -> Plan:
    """The plan of `layers` in a model whose other tensors are named as Llama's; `options` are further keys of Plan."""
    values: dict[str, Any] = {
        "layers": layers,
        "width": config.size("hidden_size"),
        "vocab": config.size("vocab_size"),
        "embedding": "model.embed_tokens.weight",
        "norm": norm("model.norm"),
        "eps": config.number("rms_norm_eps", 1e-6),
        "tie": config.flag("tie_word_embeddings", False),
        "context": exact_length(config),
    }
    return Plan(**values | options)


def windows_of(config: Config, kinds: Sequence[str], window: int | None) -> list[int | str]:
    """Each layer's window by its kind, from `layer_types` or `kinds` where the config has none."""
    kinds = config.items("layer_types", list(kinds), config.size("num_hidden_layers"))
    known: dict[str, int | str] = {"full_attention": "full"} | ({"sliding_attention": window} if window else {})
    for kind in map(str, kinds):
        if kind not in known:
            raise config.unsupported("layer_types", kind, known)
    return [known[kind] for kind in kinds]


def sliding_window(config: Config, default: int | None = 4096) -> int | None:
    """The window, which null means to be none, and an absent key `default`."""
    if config.values.get("sliding_window", default) is None:
        return None
    return config.size("sliding_window", default)
