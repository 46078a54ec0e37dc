"""Earlier Transformers with LayerNorm: GPT-J, OPT, Falcon, and GPT-BigCode (StarCoder)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from synthe_core.interop.huggingface.families.decoder import (
    activation,
    attention_tensors,
    decoder_layers,
    head_size,
    layer_places,
    mlp_tensors,
    transformer_plan,
)
from synthe_core.interop.huggingface.families.gpt import WITH_BIAS, gpt_keys, gpt_plan
from synthe_core.interop.huggingface.families.llama_kin import neighbours
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, linear, origin
from synthe_core.interop.huggingface.families.rotary import rotary
from synthe_core.interop.huggingface.published import Config

SHARED = {"norm": "shared"}


def gptj(config: Config) -> Plan:
    """Attention and an MLP side by side; the first `rotary_dim` channels of a head are turned in neighbouring pairs."""
    heads, mlp = gpt_keys(config)
    size = config.size("n_embd") // heads
    turned = size if config.values.get("rotary_dim", 64) is None else config.size("rotary_dim", 64)
    if turned % 2 or turned > size:
        raise config.unsupported("rotary_dim", turned, [f"an even number up to {size}"])
    keys = {"type": "attention", "heads": heads, "kv_heads": heads, "head_size": size, "qk_norm": False}
    keys["rope_size"] = None if turned == size else turned
    layers = []
    for index in range(config.size("n_layer", 28)):
        place = f"transformer.h.{index}"
        tensors = neighbours(f"{place}.attn", keys, out="out_proj")
        feeding = linear("up", f"{place}.mlp.fc_in", bias=True) | linear("out", f"{place}.mlp.fc_out", bias=True)
        layers.append([Part(keys, WITH_BIAS(f"{place}.ln_1"), tensors), Part(mlp | {"residual": SHARED}, {}, feeding)])
    return gpt_plan(config, layers, {"head_bias": True}, tie=False)


def gpt_bigcode(config: Config) -> Plan:
    """GPT-2 with one key head, whose map of queries, keys and values is one matrix."""
    config.only("add_cross_attention", False)
    heads, mlp = gpt_keys(config, "gelu_pytorch_tanh")
    shared = config.flag("multi_query", True)
    keys = {"type": "attention", "heads": heads, "kv_heads": 1 if shared else heads, "rope": None, "qk_norm": False}
    keys |= {"bias": "all", "scale": None if config.flag("scale_attn_weights", True) else 1.0}
    layers = []
    for index in range(config.size("n_layer", 12)):
        place = f"transformer.h.{index}"
        mixing = _fused(None if shared else partial(_by_head, heads, 3), f"{place}.attn.c_attn", bias=True)
        mixing |= linear("out", f"{place}.attn.c_proj", bias=True)
        feeding = linear("up", f"{place}.mlp.c_fc", bias=True) | linear("out", f"{place}.mlp.c_proj", bias=True)
        layers.append([Part(keys, WITH_BIAS(f"{place}.ln_1"), mixing), Part(mlp, WITH_BIAS(f"{place}.ln_2"), feeding)])
    positions = config.size("n_positions", 1024)
    return gpt_plan(config, layers, {"positions": positions}, positions="transformer.wpe.weight")


def opt(config: Config) -> Plan:
    """Learned positions, of which the first is the third row of their table."""
    width, heads = config.size("hidden_size"), config.size("num_attention_heads")
    config.only("do_layer_norm_before", True)
    config.only("_remove_final_layer_norm", False)
    config.only("layer_norm_elementwise_affine", True)
    config.only("word_embed_proj_dim", width)
    bias = config.flag("enable_bias", True)
    keys = {"type": "attention", "heads": heads, "kv_heads": heads, "rope": None, "qk_norm": False}
    keys["bias"] = "all" if bias else "none"
    mlp = {
        "type": "mlp",
        "hidden": config.size("ffn_dim"),
        "activation": activation(config, "activation_function", "relu"),
        "gated": False,
        "bias": bias,
    }
    layers = []
    for _, place in layer_places(config, "model.decoder.layers"):
        mixing = attention_tensors(f"{place}.self_attn", {**keys, "head_size": width // heads}, out="out_proj")
        feeding = mlp_tensors(place, mlp, "fc1", "fc2")
        before = [WITH_BIAS(f"{place}.{name}_layer_norm") for name in ("self_attn", "final")]
        layers.append([Part(keys, before[0], mixing), Part(mlp, before[1], feeding)])
    return transformer_plan(
        config,
        layers,
        embedding="model.decoder.embed_tokens.weight",
        norm=WITH_BIAS("model.decoder.final_layer_norm"),
        eps=1e-5,
        tie=config.flag("tie_word_embeddings", True),
        options={"norm": "layer", "positions": config.size("max_position_embeddings", 2048)},
        positions=origin("model.decoder.embed_positions.weight", make=_from_third),
        aliases=(("model.", ""),),
    )


def falcon(config: Config) -> Plan:
    config.only("alibi", False)
    heads, size, bias = config.size("num_attention_heads"), head_size(config), config.flag("bias", False)
    grouped, one = config.flag("new_decoder_architecture", False), config.flag("multi_query", True)
    groups = config.size("num_kv_heads", heads) if grouped or not one else 1
    parallel = config.flag("parallel_attn", True)
    if not parallel and grouped:
        raise config.unsupported("parallel_attn", parallel, [True])
    norms = config.size("num_ln_in_parallel_attn", 2 if grouped else 1)
    if norms == 2 and not (grouped and parallel):
        raise config.unsupported("num_ln_in_parallel_attn", norms, [1])
    keys = {"type": "attention", "heads": heads, "kv_heads": groups, "head_size": size, "qk_norm": False}
    keys |= {"bias": "all" if bias else "none", **rotary(config)}
    mlp = {
        "type": "mlp",
        "hidden": config.size("ffn_hidden_size", 4 * config.size("hidden_size")),
        "activation": activation(config, "activation", "gelu"),
        "gated": False,
        "bias": bias,
    }
    before: tuple[str | None, str | None]
    if norms == 2:
        before, mlp = ("ln_attn", "ln_mlp"), mlp | {"residual": {"parallel": True}}
    elif parallel:
        before, mlp = ("input_layernorm", None), mlp | {"residual": SHARED}
    else:
        before = ("input_layernorm", "post_attention_layernorm")
    regroup = None if groups == 1 else partial(_by_head, groups, heads // groups + 2)
    layers = decoder_layers(
        config,
        keys,
        mlp,
        norm=WITH_BIAS,
        before=before,
        attend=lambda inner, _: (
            _fused(regroup, f"{inner}.query_key_value", bias) | linear("out", f"{inner}.dense", bias=bias)
        ),
        feed=partial(mlp_tensors, up="dense_h_to_4h", down="dense_4h_to_h"),
        prefix="transformer.h",
        inner=("self_attention", "mlp"),
    )
    return transformer_plan(
        config,
        layers,
        embedding="transformer.word_embeddings.weight",
        norm=WITH_BIAS("transformer.ln_f"),
        eps=config.number("layer_norm_epsilon", 1e-5),
        tie=config.flag("tie_word_embeddings", True),
        options={"norm": "layer"},
    )


def _fused(make: Callable[[Tensor], Tensor] | None, theirs: str, bias: bool) -> dict[str, Origin]:
    """Queries, keys and values of one map, whose rows `make` puts in that order."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"qkv.{kind}": origin(f"{theirs}.{kind}", make=make) for kind in kinds}


def _by_head(groups: int, each: int, matrix: Tensor) -> Tensor:
    """The rows of every group of heads, `each` - 2 queries, a key and a value, as all queries, keys and values."""
    rows = matrix.unflatten(0, (groups, each, -1))
    return torch.cat([rows[:, :-2].flatten(0, 2), rows[:, -2].flatten(0, 1), rows[:, -1].flatten(0, 1)])


def _from_third(table: Tensor) -> Tensor:
    return table[2:]


ARCHITECTURES: Architectures = {
    "FalconForCausalLM": falcon,
    "GPTBigCodeForCausalLM": gpt_bigcode,
    "GPTJForCausalLM": gptj,
    "OPTForCausalLM": opt,
}
