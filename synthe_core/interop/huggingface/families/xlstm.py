"""xLSTM-7B: the matrix memory of mLSTM and a SwiGLU MLP."""

from __future__ import annotations

from torch import Tensor

from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.published import Config


def xlstm(config: Config) -> Plan:
    width, heads = config.size("hidden_size", config.get("embedding_dim")), config.size("num_heads", 8)
    eps = config.number("norm_eps", 1e-6)
    config.only("use_bias", False)
    config.only("add_out_norm", True)
    config.only("eps", 1e-6)  # added to a divisor that is at least 1 where gates are not extreme
    config.only("weight_mode", "single", "fused")
    config.only("embedding_dim", width)
    keys, values = (int(width * config.number(f"{name}_dim_factor", d)) for name, d in (("qk", 0.5), ("v", 1.0)))
    for name, size in (("qk_dim_factor", keys), ("v_dim_factor", values)):
        if size % heads:
            raise config.unsupported(
                name, config.get(name), [f"what makes {size} channels a multiple of {heads} heads"]
            )
    fused = config.get("weight_mode") == "fused"
    mixer = {
        "type": "mlstm",
        "heads": heads,
        "key_size": keys // heads,
        "value_size": values // heads,
        "conv": 0,
        "cap": config.number("gate_soft_cap", 15.0),
        "norm": "layer",
        "norm_eps": eps,
    }
    multiple = config.size("ffn_round_up_to_multiple_of", 64)
    hidden = int((width * config.number("ffn_proj_factor", 2.667) + multiple - 1) // multiple * multiple)
    layers = []
    for index in range(config.size("num_blocks", config.size("num_hidden_layers", 32))):
        place = f"backbone.blocks.{index}"
        up = ["proj_up_gate_z"] if fused else ["proj_up_gate", "proj_up"]
        feeding = linear("gate_up", *(f"{place}.ffn.{name}" for name in up)) | linear("out", f"{place}.ffn.proj_down")
        layers.append(
            [
                Part(mixer, norm(f"{place}.norm_mlstm"), _mlstm(f"{place}.mlstm_layer", fused, heads)),
                Part({"type": "mlp", "hidden": hidden}, norm(f"{place}.norm_ffn"), feeding),
            ]
        )
    return Plan(
        layers,
        width,
        config.size("vocab_size"),
        "backbone.embeddings.weight",
        norm("backbone.out_norm"),
        eps,
        config.flag("tie_word_embeddings", False),
        options={"logit_cap": config.number("output_logit_soft_cap", 30.0)},
    )


def _mlstm(place: str, fused: bool, heads: int) -> dict[str, Origin]:
    names = ["q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact"]
    tensors = linear("project", *(f"{place}.{name}" for name in (["qkv_opreact", "ifgate_preact"] if fused else names)))
    tensors |= linear("out", f"{place}.out_proj")
    tensors["norm"] = origin(f"{place}.multihead_norm.weight", make=lambda weight: weight.view(heads, -1))
    for ours, name, first in (("input_bias", "igate", 0), ("forget_bias", "fgate", heads)):
        published = f"{place}.ifgate_preact.bias" if fused else f"{place}.{name}_preact.bias"

        def part(bias: Tensor, first: int = first) -> Tensor:
            return bias[first : first + heads]

        tensors[ours] = origin(published, make=part if fused else None)
    return tensors


ARCHITECTURES: Architectures = {
    "xLSTMForCausalLM": xlstm,
}
