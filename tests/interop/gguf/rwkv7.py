"""A random RWKV-7 as a folder of flash-linear-attention's, and as a GGUF file by llama.cpp's conventions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

gguf = pytest.importorskip("gguf")
RANKS = {"w": 6, "a": 5, "v": 3, "g": 7}
LORAS = {"decay": "w", "a": "a", "v": "v", "gate": "g"}


def tensors(width: int, head: int, layers: int, hidden: int, vocab: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 0.3) -> Tensor:
        return scale * torch.randn(shape, generator=draw)

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + normal(width, scale=0.1), f"{name}.bias": normal(width, scale=0.1)}

    made = {"model.embeddings.weight": normal(vocab, width, scale=1.0), "lm_head.weight": normal(vocab, width)}
    made |= norm("model.norm") | norm("model.layers.0.pre_norm")
    for i in range(layers):
        layer, attn = f"model.layers.{i}", f"model.layers.{i}.attn"
        made |= norm(f"{layer}.attn_norm") | norm(f"{layer}.ffn_norm") | norm(f"{attn}.g_norm")
        made |= {f"{attn}.x_{each}": 0.5 + normal(1, 1, width, scale=0.2) for each in "rwkvag"}
        made |= {f"{attn}.{each}": 0.7 + normal(width, scale=0.2) for each in ("k_k", "k_a")}
        made |= {f"{attn}.{each}_proj.weight": normal(width, width, scale=0.2) for each in "rkvo"}
        made[f"{attn}.r_k"] = normal(width // head, head)
        for kind in "wavg" if i else "wag":
            made[f"{attn}.{kind}_lora.lora.0.weight"] = normal(RANKS[kind], width)
            made[f"{attn}.{kind}_lora.lora.2.weight"] = normal(width, RANKS[kind])
            if kind != "g":
                made[f"{attn}.{kind}_lora.lora.2.bias"] = normal(width)
        made[f"{layer}.ffn.x_k"] = 0.5 + normal(width, scale=0.2)
        made[f"{layer}.ffn.key.weight"] = normal(hidden, width, scale=0.2)
        made[f"{layer}.ffn.value.weight"] = normal(width, hidden, scale=0.2)
    return made


def folder(path: Path, given: dict[str, Tensor], head: int) -> Path:
    """As flash-linear-attention saves it."""
    path.mkdir()
    save_file(given, path / "model.safetensors")
    config: dict[str, Any] = {
        "architectures": ["RWKV7ForCausalLM"], "model_type": "rwkv7", "hidden_act": "sqrelu", "norm_eps": 1e-5,
        "hidden_size": given["model.norm.weight"].shape[0], "head_dim": head, "fuse_norm": False, "norm_first": True,
        "intermediate_size": given["model.layers.0.ffn.key.weight"].shape[0], "tie_word_embeddings": False,
        "num_hidden_layers": count(given), "vocab_size": given["lm_head.weight"].shape[0],
        **{f"{name}_low_rank_dim": RANKS[letter] for name, letter in LORAS.items()},
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path


def count(given: dict[str, Tensor]) -> int:
    return sum(name.endswith("ffn.x_k") for name in given)


def write(path: Path, given: dict[str, Tensor], head: int, **more: Any) -> Path:
    """As llama.cpp's converter writes it: the mixes in one tensor, and values of the first layer that nothing reads."""
    layers, width = count(given), given["model.norm.weight"].shape[0]
    writer = gguf.GGUFWriter(path, "rwkv7")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(head)
    writer.add_decay_lora_rank(RANKS["w"])
    writer.add_iclr_lora_rank(RANKS["a"])
    writer.add_value_residual_mix_lora_rank(RANKS["v"])
    writer.add_gate_lora_rank(RANKS["g"])
    writer.add_feed_forward_length(given["model.layers.0.ffn.key.weight"].shape[0])
    writer.add_head_count(0)
    for key, value in more.items():
        getattr(writer, f"add_{key}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.RWKV7, layers)
    for name, tensor in _converted(given, layers).items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None or name.startswith("blk."), name
        writer.add_tensor(stored or name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _converted(given: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Under the names of the authors' code, which the converter unifies."""
    made: dict[str, Tensor] = {}
    for name, tensor in given.items():
        if ".attn.x_" in name:
            continue
        new = name.replace("ffn_norm", "ln2").replace("attn_norm", "ln1").replace("g_norm", "ln_x")
        new = new.replace(".attn.", ".attention.").replace(".ffn.", ".feed_forward.")
        new = new.replace("_lora.lora.0.weight", "1.weight").replace("_lora.lora.2.weight", "2.weight")
        new = new.replace("_lora.lora.2.bias", "0.weight")
        bare = new.endswith(("k_k", "k_a", "r_k", "x_k"))
        made[f"{new}.weight" if bare else new] = tensor.flatten() if bare else tensor
    for i in range(layers):
        place = f"model.layers.{i}"
        mixes = [given[f"{place}.attn.x_{each}"] for each in "rwkvag"]
        made[f"blk.{i}.time_mix_lerp_fused.weight"] = torch.stack(mixes)
    for part in "012":
        made[f"model.layers.0.attention.v{part}.weight"] = made[f"model.layers.0.attention.a{part}.weight"]
    return made
