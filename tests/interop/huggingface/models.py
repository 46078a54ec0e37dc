"""Small random models of transformers, saved as it saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors, trainers

WIDTH, VOCAB = 64, 97


CLASSES = {
    "GPT2": ("GPT2Config", "GPT2LMHeadModel"),
    "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "Qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM"),
    "Qwen3_5Moe": ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM"),
}
"""The names of config and model where they are not those of a kind with `Config` and `ForCausalLM`."""


def published(folder: Path, kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Saves a `kind`ForCausalLM whose every parameter is away from its initial value, and gives it in float32."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = CLASSES.get(kind, (f"{kind}Config", f"{kind}ForCausalLM"))
    config = getattr(transformers, names[0])(**{"vocab_size": VOCAB, "hidden_size": WIDTH, **options})
    torch.manual_seed(seed)
    model = getattr(transformers, names[1])(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            parameter.data = parameter.to(dtype)  # and not the buffers: the angles stay exact
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):  # of a router
                buffer.add_(0.1 * torch.randn_like(buffer))
    model.save_pretrained(folder)
    return model.to(torch.float32).eval()


def transformer(folder: Path, kind: str = "Llama", layers: int = 2, **options: Any) -> Any:
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 112, "num_hidden_layers": layers}
    return published(folder, kind, **{**sizes, **options})


def tokens(batch: int = 2, time: int = 37, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, VOCAB, (batch, time))


def add_tokenizer(folder: Path, template: str | None = "<s> $A") -> tokenizers.Tokenizer:
    """A byte-level tokenizer.json of some 270 tokens whose end of text has a name that cannot be guessed."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = ["<s>", "<|stop|>", "<|turn|>"]
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, special_tokens=names, show_progress=False)
    inner.train_from_iterator(["times is times is the sea the sea"] * 9, trainer)
    if template is not None:
        inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0)])
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    return inner
