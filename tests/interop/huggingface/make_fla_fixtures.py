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
    if (layer := sys.modules.get("fla.layers.rwkv7")) is not None:
        naive = importlib.import_module("fla.ops.generalized_delta_rule.dplr.naive").dplr_recurrence

        def rwkv7(r: Any, w: Any, k: Any, v: Any, a: Any, b: Any, scale: float = 1.0, **more: Any) -> Any:
            heads_first = [x.transpose(1, 2) for x in (r * (scale * r.shape[-1] ** 0.5), k, v, a, b, w)]
            o, state = naive(*heads_first, more.get("initial_state"))
            return o.transpose(1, 2), state

        layer.chunk_rwkv7 = rwkv7


if __name__ == "__main__":
    main(sys.argv[1:])
