"""RWKV-7 as flash-linear-attention publishes it: time mixing with the value residual, and channel mixing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.published import Config

RANKS = {"decay": ("w", 64, 2.5), "rate": ("a", 64, 2.5), "gate": ("g", 128, 5.0), "value": ("v", 16, 1.7)}
"""Of our low-rank maps: the published letter, the rank of a config without the key, and by the width where it is null,
in √width."""
SHIFTS = "rwkvag"  # of what is read, in the order of our mixes


def rwkv7(config: Config) -> Plan:
    width, count = config.size("hidden_size"), config.size("num_hidden_layers", 24)
    config.only("hidden_act", "sqrelu")
    config.only("attn", None)
    config.only("value_dim", None, width, [width] * count)
    size = config.size("head_dim", max(2, width // config.size("num_heads", max(1, width // 64))), least=2)
    eps, ratio = config.number("norm_eps", 1e-5), config.number("hidden_ratio", 4)
    bias = config.flag("norm_bias", True)
    mixer: dict[str, Any] = {
        "type": "rwkv7",
        "head_size": size,
        "norm_eps": eps,
        "key_norm_eps": 1e-6 if config.flag("fuse_norm", True) else 1e-12,
    }
    mixer |= {f"{name}_rank": _rank(config, name, width, size) for name in RANKS}
    hidden = config.size("intermediate_size", -(-int(width * ratio) // 32) * 32)
    layers = []
    for index in range(count):
        place = f"model.layers.{index}"
        spec = mixer | {"values": "mix" if index else "share"}
        feeding = linear("key", f"{place}.ffn.key") | linear("value", f"{place}.ffn.value")
        feeding["mix"] = origin(f"{place}.ffn.x_k")
        layers.append(
            [
                Part(spec, norm(f"{place}.attn_norm", bias=bias), _mixing(f"{place}.attn", width // size, index > 0)),
                Part({"type": "channel_mixing", "hidden": hidden}, norm(f"{place}.ffn_norm", bias=bias), feeding),
            ]
        )
    embedding = "model.embeddings.weight"
    first = config.flag("norm_first", True)
    tie = config.flag("tie_word_embeddings", False)
    return Plan(
        layers,
        width,
        config.size("vocab_size", 32000),
        embedding,
        norm("model.norm", bias=bias),
        eps,
        tie and not first,
        head=embedding if tie and first else "lm_head.weight",
        options={"norm": "layer" if bias else "layer_no_bias"},
        embedded=_normalised(embedding, width, eps, bias) if first else None,
    )


def _rank(config: Config, name: str, width: int, size: int) -> int:
    letter, default, scale = RANKS[name]
    key = f"{'decay' if name == 'decay' else name if name == 'gate' else letter}_low_rank_dim"
    if config.values.get(key, default) is not None:
        return config.size(key, default)
    return max(32, round(scale * width**0.5 * (1 if name == "gate" else size / 64) / 32) * 32)


def _mixing(place: str, heads: int, mixes: bool) -> dict[str, Origin]:
    """The tensors of a layer's time mixing."""
    tensors = {"mix": origin(*(f"{place}.x_{letter}" for letter in SHIFTS), make=_stacked)}
    for ours, theirs in (("receptance", "r"), ("key", "k"), ("value", "v"), ("out", "o")):
        tensors |= linear(ours, f"{place}.{theirs}_proj")
    for name in ("decay", "rate", "gate", "value") if mixes else ("decay", "rate", "gate"):
        lora = f"{place}.{RANKS[name][0]}_lora.lora"
        tensors |= linear(f"{name}_in", f"{lora}.0") | linear(f"{name}_out", f"{lora}.2")
        if name != "gate":
            tensors[f"{name}_bias"] = origin(f"{lora}.2.bias")
    by_head = partial(Tensor.view, size=(heads, -1))
    tensors |= {name: origin(f"{place}.{name}") for name in ("k_k", "k_a", "r_k")}
    tensors["norm"] = origin(f"{place}.g_norm.weight", make=by_head)
    tensors["norm_bias"] = origin(f"{place}.g_norm.bias", make=by_head)
    return tensors


def _stacked(*mixes: Tensor) -> Tensor:
    return torch.cat([mix.flatten()[None] for mix in mixes])


def _normalised(embedding: str, width: int, eps: float, bias: bool) -> Origin:
    """Embeddings behind the norm that the first block has before all others: each row once, for all texts."""
    place = "model.layers.0.pre_norm"
    names = (embedding, f"{place}.weight", *((f"{place}.bias",) if bias else ()))

    def normalised(rows: Tensor, weight: Tensor, offset: Tensor | None = None) -> Tensor:
        return F.layer_norm(rows, (width,), weight, offset, eps)

    return origin(*names, make=normalised)


ARCHITECTURES: Architectures = {
    "RWKV7ForCausalLM": rwkv7,
}
