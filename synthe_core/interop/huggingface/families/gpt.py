"""GPT-2: learned positions, LayerNorm, transposed maps. GPT-NeoX (Pythia): rotary positions, learners side by side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from synthe_core.interop.huggingface.families.decoder import (
    activation,
    attention_keys,
    decoder_layers,
    head_size,
    mlp_keys,
    mlp_tensors,
    transformer_plan,
)
from synthe_core.interop.huggingface.families.plan import (
    Architectures,
    Origin,
    Part,
    Plan,
    linear,
    norm,
    origin,
    transposed,
)
from synthe_core.interop.huggingface.families.rotary import parameters, rotary
from synthe_core.interop.huggingface.published import Config

WITH_BIAS = partial(norm, bias=True)


def gpt2(config: Config) -> Plan:
    config.only("add_cross_attention", False)
    heads, mlp = gpt_keys(config)
    scale = max(1, config.size("n_embd", 768) // heads) ** -0.5 if config.flag("scale_attn_weights", True) else 1.0
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    layers = []
    for index in range(config.size("n_layer", 12)):
        place = f"transformer.h.{index}"
        attention = {"type": "attention", "heads": heads, "rope": None, "qk_norm": False, "bias": "all"}
        attention["scale"] = scale / (index + 1 if by_layer else 1)
        mixing = transposed("qkv", f"{place}.attn.c_attn") | transposed("out", f"{place}.attn.c_proj")
        feeding = transposed("up", f"{place}.mlp.c_fc") | transposed("out", f"{place}.mlp.c_proj")
        layers.append(
            [Part(attention, WITH_BIAS(f"{place}.ln_1"), mixing), Part(mlp, WITH_BIAS(f"{place}.ln_2"), feeding)]
        )
    positions = config.size("n_positions", 1024)
    return gpt_plan(config, layers, options={"positions": positions}, positions="transformer.wpe.weight")


def gpt_keys(config: Config, default: str = "gelu_new") -> tuple[int, dict[str, Any]]:
    """The heads, and the specification of the MLP, by GPT-2's keys. default: the activation where it is absent."""
    width = config.size("n_embd", 768)
    act = activation(config, "activation_function", default)
    mlp = {"type": "mlp", "hidden": config.size("n_inner", 4 * width), "activation": act, "gated": False, "bias": True}
    return config.size("n_head", 12), mlp


def gpt_plan(
    config: Config, layers: list[list[Part]], options: dict[str, Any], tie: bool = True, positions: str | None = None
) -> Plan:
    """The plan of a model with GPT-2's names, which begin with `transformer.`, or not, in files of the model without
    its head. tie: whether embedding and head share a matrix where the config does not say it."""
    return Plan(
        layers,
        config.size("n_embd", 768),
        config.size("vocab_size"),
        "transformer.wte.weight",
        WITH_BIAS("transformer.ln_f"),
        config.number("layer_norm_epsilon", 1e-5),
        config.flag("tie_word_embeddings", tie),
        options={"norm": "layer", **options},
        positions=positions,
        ignored=r"\.attn\.(masked_)?bias$",  # buffers of older versions
        aliases=(("transformer.", ""),),
    )


def gpt_neox(config: Config) -> Plan:
    bias = config.flag("attention_bias", True)
    heads, size = config.size("num_attention_heads"), head_size(config)
    own = {"kv_heads": heads, "head_size": size}
    keys = attention_keys(config, bias="all" if bias else "none") | own | _rotary(config, size)
    parallel = {"parallel": True} if config.flag("use_parallel_residual", True) else None
    mlp = mlp_keys(config, default="gelu", gated=False, bias=True, residual=parallel)
    layers = decoder_layers(
        config,
        keys,
        mlp,
        norm=WITH_BIAS,
        attend=partial(_fused_by_head, heads),
        feed=partial(mlp_tensors, up="dense_h_to_4h", down="dense_4h_to_h"),
        prefix="gpt_neox.layers",
        inner=("attention", "mlp"),
    )
    return transformer_plan(
        config,
        layers,
        embedding="gpt_neox.embed_in.weight",
        norm=WITH_BIAS("gpt_neox.final_layer_norm"),
        eps=config.number("layer_norm_eps", 1e-5),
        options={"norm": "layer"},
        head="embed_out.weight",
        aliases=(("embed_out.", "lm_head."),),
        ignored=r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",  # buffers of older versions
    )


def _rotary(config: Config, head_size: int) -> dict[str, Any]:
    """Positions, whose base and share have names of their own in older configs."""
    given = parameters(config).values
    older = {
        "rope_theta": config.values.get("rotary_emb_base"),
        "partial_rotary_factor": config.values.get("rotary_pct"),
    }
    values = {key: value for key, value in older.items() if value is not None} | given
    return rotary(config, head_size, 0.25, given=Config(config.path, values, "rope_parameters."))


def _fused_by_head(heads: int, inner: str, keys: Mapping[str, Any]) -> dict[str, Origin]:
    """One map whose rows are the query, key and value of each head in turn."""

    def by_kind(matrix: Tensor) -> Tensor:
        return matrix.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    bias = keys["bias"] == "all"
    kinds = ("weight", "bias") if bias else ("weight",)
    qkv = {f"qkv.{kind}": origin(f"{inner}.query_key_value.{kind}", make=by_kind) for kind in kinds}
    return qkv | linear("out", f"{inner}.dense", bias=bias)


ARCHITECTURES: Architectures = {
    "GPT2LMHeadModel": gpt2,
    "GPTNeoXForCausalLM": gpt_neox,
}
