"""Random models of transformers, and what a GGUF file of one has to give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from synthe_core.interop.gguf.model import GgufModel
from synthe_core.interop.huggingface.families import ARCHITECTURES
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.gguf.conventions import published

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
TOKENS = torch.randint(0, 96, (2, 90), generator=torch.Generator().manual_seed(1))


def random(kind: str, **options: Any) -> Any:
    """A model of a kind, whose every parameter is away from its initial value."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
    torch.manual_seed(0)
    name = f"{kind.removesuffix('Text')}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel"
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def check_tensors(model: Any, path: Path, tolerance: float = 0) -> None:
    """A file has the tensors of `model` under transformers' names."""
    read, tensors = GgufModel(path), published(model)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(read[name].view(tensor.shape).float(), tensor, rtol=0, atol=tolerance)
        assert read.shape(name) == list(tensor.shape)


def check_logits(model: Any, path: Path) -> None:
    """A file gives the logits of `model` with its own config, in transformers and in our learners."""
    read = GgufModel(path)
    values = dict(read.config.values)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    config._attn_implementation = "eager"
    tensors = {name: read[name].float() for name in read}
    again = type(model).from_pretrained(None, config=config, state_dict=tensors).eval()
    with torch.no_grad():
        expected = model(TOKENS).logits
        assert expected.std() > 0.05
        torch.testing.assert_close(again(TOKENS).logits, expected, rtol=0, atol=2e-5)
        if values["architectures"][0] in ARCHITECTURES:
            checkpoint = Checkpoint.open(path)
            tokens = TOKENS[:, : checkpoint.context]  # longer texts have other angles, which learners do not express
            ours = checkpoint.model().eval()(tokens)[0]
            torch.testing.assert_close(ours, model(tokens).logits, rtol=0, atol=1e-4)
