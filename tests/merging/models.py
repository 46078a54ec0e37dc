"""Small models to merge: checkpoints of ours, Hugging Face folders, adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.events import Event, Result
from synthe_core.merging.config import MergeSpec
from synthe_core.merging.merge import merge
from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe.schema import Recipe
from synthe_core.storage import checkpoint as checkpoints
from synthe_core.storage.manifest import Manifest

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def llama(config: Mapping[str, Any] = CONFIG, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a small Llama, random."""
    width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = width * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{n}_proj.weight": (width, width) for n in "qo"}
        shapes |= {f"{at}self_attn.{n}_proj.weight": (keys, width) for n in "kv"}
        shapes |= {f"{at}mlp.{n}_proj.weight": (inner, width) for n in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{at}{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocab, width)}
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}


def moved(tensors: Mapping[str, Tensor], seed: int, by: float = 0.05) -> dict[str, Tensor]:
    """As fine-tuning would have moved them, at random."""
    draw = torch.Generator().manual_seed(seed)
    return {
        n: t + by * torch.randn(t.shape, generator=draw) if t.is_floating_point() else t for n, t in tensors.items()
    }


def folder(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] = CONFIG, files: int = 1) -> Path:
    """A Hugging Face folder of these tensors, in several files with an index where `files` > 1."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(dict(tensors), path / "model.safetensors", metadata={"format": "pt"})
        return path
    places = {}
    for number in range(files):
        name = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = {key: value for i, (key, value) in enumerate(tensors.items()) if i % files == number}
        save_file(part, path / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def family(at: Path, count: int = 4, by: float = 0.05) -> tuple[Path, list[Path]]:
    """A base and `count` models made of it, as Hugging Face folders."""
    base = llama()
    return folder(at / "base", base), [folder(at / "abcdef"[i], moved(base, i + 1, by)) for i in range(count)]


def adapter(
    path: Path,
    base: str | None,
    tensors: Mapping[str, Tensor],
    modules: list[str],
    rank: int = 4,
    seed: int = 0,
    **more: Any,
) -> Path:
    """A LoRA adapter as PEFT writes it, random, for these modules of a model with `tensors`."""
    draw = torch.Generator().manual_seed(seed)
    lora = {}
    for module in modules:
        rows, columns = tensors[f"{module}.weight"].shape
        lora[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, columns, generator=draw) * 0.3
        lora[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=draw) * 0.3
    path.mkdir(parents=True)
    save_file(lora | more.pop("whole", {}), path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": modules,
        **more,
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def checkpoint(path: Path, seed: int | None = None, blocks: int = 2, width: int = 16, by: float = 0.05) -> Path:
    """A checkpoint of ours, on bytes; with a seed, as fine-tuned from the one without."""
    block = [{"type": "attention", "heads": 2, "window": 16}, {"type": "mlp", "hidden": 24}]
    values = {"model": {"width": width, "blocks": blocks, "block": block}, "data": {"sequence": 32}, "name": path.name}
    recipe = Recipe.model_validate(values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel(recipe.model, 257)
    tensors = checkpoints.weights(model)
    tensors = tensors if seed is None else moved(tensors, seed, by)
    checkpoints.save(path, recipe=recipe, vocab=257, tensors=tensors, manifest=Manifest(), tokenizer=ByteTokenizer())
    return path


def run(out: Path, method: str, models: list[Any], base: Any = None, **more: Any) -> list[Event]:
    """Merges into `out`; `threads`, `shard_bytes` and `hashes` go to the verb, the rest into the spec."""
    options = {key: more.pop(key) for key in ("threads", "shard_bytes", "hashes", "stop") if key in more}
    listed = [each if isinstance(each, dict) else {"model": str(each)} for each in models]
    base = None if base is None else str(base)
    spec = MergeSpec.model_validate({"merge_method": method, "base_model": base, "models": listed, **more})
    return list(merge(spec, out=out, **options))


def result(out: Path, *arguments: Any, **more: Any) -> dict[str, Tensor]:
    """`run`, and the tensors of what it wrote."""
    (done,) = [event for event in run(out, *arguments, **more) if isinstance(event, Result)]
    assert done.path == out
    tensors: dict[str, Tensor] = {}
    for file in sorted(out.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors
