"""Makes the folders of `fla/` here: small random models of flash-linear-attention with what it computes from them.

    pip install flash-linear-attention triton einops      # 0.6.0 and 3.9.0 made what is there
    python -m tests.interop.huggingface.make_fla_fixtures [NAME ...]

fla needs Triton. On a machine without a GPU its kernels run in Triton's interpreter; the few that the interpreter
cannot run are replaced by fla's own naive recurrences. A folder holds config.json and model.safetensors, as fla saves
them, and expected.safetensors: a text, its logits, and the gradient of every tensor by the text's loss.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "fla"
VOCAB, TIME = 23, 45
PLAIN = {"vocab_size": VOCAB, "num_hidden_layers": 2, "hidden_size": 16, "fuse_cross_entropy": False}
RANKS = {"decay_low_rank_dim": 4, "gate_low_rank_dim": 5, "a_low_rank_dim": 3, "v_low_rank_dim": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "rwkv7": ("rwkv7.RWKV7", PLAIN | RANKS | {"head_dim": 8, "intermediate_size": 24, "num_hidden_layers": 3}),
    "rwkv7-unfused": (
        "rwkv7.RWKV7",
        PLAIN | RANKS | {"head_dim": 4, "fuse_norm": False, "norm_first": False, "tie_word_embeddings": True}
        | {"norm_eps": 1e-3, "hidden_ratio": 1.5},
    ),
    "rwkv7-without-bias": (
        "rwkv7.RWKV7",
        PLAIN | RANKS | {"head_dim": None, "num_heads": 4, "norm_bias": False, "fuse_norm": False, "hidden_size": 12}
        | {"intermediate_size": 20, "tie_word_embeddings": True},
    ),
    "delta-net": ("delta_net.DeltaNet", PLAIN | {"num_heads": 2, "intermediate_size": 20}),
    "delta-net-gated": (
        "delta_net.DeltaNet",
        PLAIN | {"num_heads": 2, "use_gate": True, "allow_neg_eigval": True, "expand_k": 0.5, "expand_v": 1.5}
        | {"intermediate_size": 12, "tie_word_embeddings": True, "conv_size": 3, "norm_eps": 1e-3},
    ),
    "delta-net-without-conv": (
        "delta_net.DeltaNet",
        PLAIN | {"num_heads": 3, "hidden_size": 12, "use_short_conv": False, "fuse_norm": False}
        | {"intermediate_size": 9, "num_hidden_layers": 1},
    ),
    "gated-delta-net": (
        "gated_deltanet.GatedDeltaNet",
        PLAIN | {"num_heads": 2, "head_dim": 6, "expand_v": 1.5, "intermediate_size": 20},
    ),
    "gated-delta-net-shared-keys": (
        "gated_deltanet.GatedDeltaNet",
        PLAIN | {"num_heads": 2, "num_v_heads": 4, "head_dim": 5, "expand_v": 2.0, "intermediate_size": 12}
        | {"allow_neg_eigval": True, "output_gate_activation": "sigmoid", "tie_word_embeddings": True}
        | {"norm_eps": 1e-3, "conv_size": 2},
    ),
    "gated-delta-net-without-gate": (
        "gated_deltanet.GatedDeltaNet",
        PLAIN | {"num_heads": 1, "head_dim": 7, "expand_v": 1.0, "intermediate_size": 9, "hidden_size": 12}
        | {"use_gate": False, "use_short_conv": False, "num_hidden_layers": 1, "fuse_norm": False},
    ),
    "gated-delta-product": (
        "gated_deltaproduct.GatedDeltaProduct",
        PLAIN | {"num_heads": 2, "head_dim": 5, "expand_v": 1.0, "intermediate_size": 12}
        | {"use_forget_gate": True, "allow_neg_eigval": True, "num_householder": 2},
    ),
    "gated-delta-product-without-decay": (
        "gated_deltaproduct.GatedDeltaProduct",
        PLAIN | {"num_heads": 1, "head_dim": 6, "expand_v": 2.0, "intermediate_size": 9, "tie_word_embeddings": True}
        | {"num_householder": 3, "use_output_gate": False, "num_hidden_layers": 1, "norm_eps": 1e-3},
    ),
    "gated-delta-product-one-step": (
        "gated_deltaproduct.GatedDeltaProduct",
        PLAIN | {"num_heads": 3, "head_dim": 4, "expand_v": 1.5, "intermediate_size": 12, "use_forget_gate": True}
        | {"use_short_conv": False, "hidden_size": 12, "fuse_norm": False},
    ),
    "kda": ("kda.KDA", PLAIN | {"num_heads": 2, "head_dim": 6, "intermediate_size": 20}),
    "kda-shared-keys": (
        "kda.KDA",
        PLAIN | {"num_heads": 2, "num_v_heads": 4, "head_dim": 4, "expand_v": 1.5, "intermediate_size": 12}
        | {"allow_neg_eigval": True, "tie_word_embeddings": True, "norm_eps": 1e-3, "conv_size": 3},
    ),
    "kda-floor": (
        "kda.KDA",
        PLAIN | {"num_heads": 1, "head_dim": 8, "intermediate_size": 9, "hidden_size": 12, "safe_gate": True}
        | {"lower_bound": -5.0, "use_short_conv": False, "num_hidden_layers": 1},
    ),
    "gla": ("gla.GLA", PLAIN | {"num_heads": 2, "intermediate_size": 20}),
    "gla-shared-keys": (
        "gla.GLA",
        PLAIN | {"num_heads": 4, "num_kv_heads": 2, "expand_k": 1.0, "intermediate_size": 12, "use_short_conv": True}
        | {"conv_size": 3, "tie_word_embeddings": True, "norm_eps": 1e-3, "clamp_min": -0.04},
    ),
    "gla-without-gate": (
        "gla.GLA",
        PLAIN | {"num_heads": 2, "intermediate_size": 9, "hidden_size": 12, "use_output_gate": False}
        | {"fuse_norm": False, "num_hidden_layers": 1, "expand_v": 2.0},
    ),
    "retnet": ("retnet.RetNet", PLAIN | {"num_heads": 2, "intermediate_size": 20}),
    "retnet-without-gate": (
        "retnet.RetNet",
        PLAIN | {"num_heads": 2, "intermediate_size": 9, "expand_k": 0.5, "expand_v": 1.0, "use_output_gate": False}
        | {"tie_word_embeddings": True, "norm_eps": 1e-3, "num_hidden_layers": 1, "fuse_norm": False},
    ),
    "hgrn2": ("hgrn2.HGRN2", PLAIN | {"expand_ratio": 8, "intermediate_size": 20, "num_hidden_layers": 3}),
    "hgrn2-without-bound": (
        "hgrn2.HGRN2",
        PLAIN | {"expand_ratio": None, "num_heads": 4, "use_lower_bound": False, "intermediate_size": 12}
        | {"tie_word_embeddings": True, "norm_eps": 1e-3},
    ),
    "mesa-net": ("mesa_net.MesaNet", PLAIN | {"num_heads": 2, "head_dim": 6, "intermediate_size": 20}),
    "mesa-net-gated": (
        "mesa_net.MesaNet",
        PLAIN | {"num_heads": 1, "head_dim": 8, "intermediate_size": 12, "use_output_gate": True, "conv_size": 3}
        | {"tie_word_embeddings": True, "norm_eps": 1e-3, "lambda_lower_bound": 0.5, "num_hidden_layers": 1},
    ),
    "forgetting-transformer": (
        "forgetting_transformer.ForgettingTransformer",
        PLAIN | {"num_heads": 2, "intermediate_size": 20},
    ),
    "forgetting-transformer-gated": (
        "forgetting_transformer.ForgettingTransformer",
        PLAIN | {"num_heads": 4, "num_kv_heads": 2, "intermediate_size": 12, "use_output_gate": True}
        | {"tie_word_embeddings": True, "norm_eps": 1e-3, "num_hidden_layers": 1},
    ),
    # One group: fla's code for CPUs gives heads the groups of others, as its decoding and its kernels do not.
    "mamba2": ("mamba2.Mamba2", PLAIN | {"head_dim": 8, "state_size": 5, "chunk_size": 16}),
    "mamba2-bias": (
        "mamba2.Mamba2",
        PLAIN | {"head_dim": 4, "state_size": 6, "use_bias": True, "use_conv_bias": False, "conv_kernel": 3}
        | {"tie_word_embeddings": True, "norm_eps": 1e-3, "dt_limit": [0.01, 0.3], "num_hidden_layers": 1}
        | {"chunk_size": 16},
    ),
    "mamba2-without-norm": (
        "mamba2.Mamba2",
        PLAIN | {"head_dim": 6, "state_size": 4, "expand": 1, "hidden_size": 12, "norm_before_gate": True}
        | {"chunk_size": 16},
    ),
}  # fmt: skip


def main(names: list[str]) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    _without_autotuning()
    for name in names or MODELS:
        print(name)
        make(FOLDER / name, *MODELS[name])


def make(folder: Path, kind: str, options: dict[str, Any]) -> None:
    module, _, stem = kind.partition(".")
    models = importlib.import_module(f"fla.models.{module}")
    _with_naive_recurrences()
    torch.manual_seed(0)
    model = getattr(models, f"{stem}ForCausalLM")(getattr(models, f"{stem}Config")(**options))
    with torch.no_grad():
        for parameter in model.parameters():  # away from its initial value, and exact in bfloat16
            parameter.copy_((parameter + 0.2 * torch.randn_like(parameter)).bfloat16())
    text = torch.randint(0, VOCAB, (1, TIME))
    logits = model(text, use_cache=False).logits
    with torch.no_grad():
        torch.testing.assert_close(model(text, use_cache=False).logits, logits, rtol=0, atol=1e-5)
    F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), text[:, 1:].flatten()).backward()
    expected = {f"gradient.{name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(expected | {"text": text, "logits": logits.detach().contiguous()}, folder / "expected.safetensors")


def _without_autotuning() -> None:
    """Kernels run with their first configuration: timing needs a GPU."""
    from triton.runtime import autotuner

    original = autotuner.Autotuner.__init__

    def first(self: Any, function: Any, names: Any, configs: Any, *rest: Any, **more: Any) -> None:
        original(self, function, names, configs[:1], *rest, **more)

    autotuner.Autotuner.__init__ = first


def _with_naive_recurrences() -> None:
    """The chunked kernels, which run where gradients are wanted, become naive recurrences of fla. Without gradients its
    own kernels run, and `make` compares the two."""
    layers = {name: sys.modules.get(f"fla.layers.{name}") for name in REPLACED}
    for name, layer in layers.items():
        if layer is not None:
            for function, replacement in REPLACED[name].items():
                setattr(layer, function, replacement)


def naive(path: str, name: str) -> Any:
    return getattr(importlib.import_module(f"fla.ops.{path}"), name)


def unit(x: Any) -> Any:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def shared(x: Any, heads: int) -> Any:
    return x.repeat_interleave(heads // x.shape[2], dim=2)


def strength(beta: Any, more: dict[str, Any]) -> Any:
    return beta.sigmoid() * (2.0 if more.get("allow_neg_eigval") else 1.0)


def rwkv7(r: Any, w: Any, k: Any, v: Any, a: Any, b: Any, scale: float = 1.0, **_: Any) -> Any:
    rule = naive("generalized_delta_rule.dplr.naive", "dplr_recurrence")
    o, state = rule(*(x.transpose(1, 2) for x in (r * (scale * r.shape[-1] ** 0.5), k, v, a, b, w)))
    return o.transpose(1, 2), state


def gated_delta(q: Any, k: Any, v: Any, g: Any, beta: Any, A_log: Any, dt_bias: Any, **more: Any) -> Any:
    rule = naive("gated_delta_rule.naive", "naive_recurrent_gated_delta_rule")
    q, k = (shared(unit(x), v.shape[2]) for x in (q, k))
    return rule(q, k, v, strength(beta, more), -A_log.exp() * F.softplus(g + dt_bias))


def gated_delta_product(q: Any, k: Any, v: Any, g: Any, beta: Any, num_householder: int, **_: Any) -> Any:
    rule = naive("gated_delta_product.naive", "naive_recurrent_gated_delta_product")
    return rule(unit(q), unit(k), v, g, beta, q.shape[-1] ** -0.5, num_householder=num_householder)


def kda(q: Any, k: Any, v: Any, g: Any, beta: Any, A_log: Any, dt_bias: Any, **more: Any) -> Any:
    if (bound := more.get("lower_bound")) is None:
        g = naive("kda.gate", "naive_kda_gate")(g, A_log, dt_bias)
    else:
        g = naive("kda.gate", "naive_kda_lowerbound_gate")(g, A_log, dt_bias, bound)
    return naive("kda.naive", "naive_recurrent_kda")(unit(q), unit(k), v, g, strength(beta, more))


def retention(q: Any, k: Any, v: Any, **_: Any) -> Any:
    o = naive("retention.naive", "naive_retention")(*(x.transpose(1, 2) for x in (q, k, v)))
    return o.transpose(1, 2), None


def gla(q: Any, k: Any, v: Any, g: Any, **_: Any) -> Any:
    return naive("gla.naive", "naive_recurrent_gla")(q, k, v, g)


def mesa_net(q: Any, k: Any, v: Any, g: Any, beta: Any, lamb: Any, **_: Any) -> Any:
    return naive("mesa_net.naive", "naive_mesa_net_exact")(unit(q), unit(k), v, g, lamb, beta)


def forgetting(q: Any, k: Any, v: Any, f: Any, **_: Any) -> Any:
    return naive("forgetting_attn.naive", "naive_forgetting_attn")(q, k, v, f)


REPLACED: dict[str, dict[str, Any]] = {
    "rwkv7": {"chunk_rwkv7": rwkv7},
    "gated_deltanet": {"chunk_gated_delta_rule": gated_delta},
    "gated_deltaproduct": {"chunk_gated_delta_product": gated_delta_product},
    "kda": {"chunk_kda": kda},
    "multiscale_retention": {"chunk_retention": retention},
    "hgrn2": {"chunk_gla": gla},
    "mesa_net": {"chunk_mesa_net": mesa_net},
    "forgetting_attn": {"parallel_forgetting_attn": forgetting},
}


if __name__ == "__main__":
    main(sys.argv[1:])
