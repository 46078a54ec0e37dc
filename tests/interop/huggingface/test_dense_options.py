"""What configs and files of dense Transformers say beside the usual: read, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthe_core.events import Notice
from synthe_core.interop.huggingface.families import plan
from synthe_core.interop.huggingface.families.rotary import exact_length
from synthe_core.interop.huggingface.model import HuggingFaceModel
from synthe_core.interop.huggingface.published import Config, UnsupportedModel
from synthe_core.interop.importer import import_hf
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.families import LOGITS, assert_close, published_gradients
from tests.interop.huggingface.models import CLASSES, VOCAB, published, tokens
from tests.interop.huggingface.test_families_dense import CASES, GEMMA, GPT2, OPT, SIZES, YARN

transformers = pytest.importorskip("transformers")

WITHOUT_EFFECT = {
    "initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "max_position_embeddings",
    "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "residual_dropout",
    "embedding_dropout", "classifier_dropout", "is_decoder", "reorder_and_upcast_attn", "pretraining_tp",
    "n_positions", "dropout", "layerdrop", "init_std", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
}  # fmt: skip
"""Keys that change no logits of a text within the context limit: of training, of other heads, of rounding."""
REPLACED = {"Exaone4": {"sliding_window_pattern"}}  # by layer_types, where there are


class Recorded(dict[str, Any]):
    """Values of a config that know which of their keys were read."""

    def __init__(self, values: dict[str, Any], read: set[str]) -> None:
        super().__init__(values)
        self.read = read

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)


def configs(kind: str) -> Iterator[dict[str, Any]]:
    """The config.json of every case of a kind."""
    config, model = CLASSES.get(kind, (f"{kind}Config", f"{kind}ForCausalLM"))
    for name, options in CASES.values():
        if name == kind:
            made = getattr(transformers, config)(**{"vocab_size": VOCAB, "hidden_size": 64, **options})
            yield json.loads(made.to_json_string(use_diff=False)) | {"architectures": [model]}


@pytest.mark.parametrize("kind", dict.fromkeys(kind for kind, _ in CASES.values()))
def test_every_key_of_a_config_is_read(kind: str) -> None:
    read: set[str] = set()
    for values in configs(kind):
        plan(Config(Path("config.json"), Recorded(values, read)))
    names = CLASSES.get(kind, (f"{kind}Config",))[0]
    common = {each.name for each in fields(transformers.PreTrainedConfig)}
    own = {each.name for each in fields(getattr(transformers, names))}
    assert own - common - read - WITHOUT_EFFECT == REPLACED.get(kind, set())


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("Gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("Gemma2", {"sliding_window": None}, "layer_types is 'sliding_attention'"),
    ("Gemma2", {"hidden_activation": "mish"}, "hidden_activation is 'mish'"),
    ("Gemma3", {"attn_logit_softcapping": 3.0}, "attn_logit_softcapping is 3.0"),
    ("Gemma3", {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters is {'rope_theta'"),
    ("Gemma3", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
    ("Gemma3", {"layer_types": ["chunked_attention"] * 7}, "layer_types is 'chunked_attention'"),
    ("Olmo3", {"rope_scaling": YARN | {"truncate": False}}, "rope_parameters.full_attention.truncate is False"),
    ("Phi3", {"rope_parameters": YARN}, "rope_type is 'yarn'"),
    ("Phi3", {"rope_parameters": {"partial_rotary_factor": 0.2}}, "partial_rotary_factor is 0.2"),
    ("Phi", {"qk_layernorm": True}, "qk_layernorm is True"),
    ("StableLm", {"qk_layernorm": True}, "qk_layernorm is True"),
    ("Cohere", {"use_qk_norm": True}, "use_qk_norm is True"),
    ("GPT2", {"add_cross_attention": True}, "add_cross_attention is True"),
    ("Falcon", {"alibi": True}, "alibi is True"),
    ("OPT", {"do_layer_norm_before": False}, "do_layer_norm_before is False"),
    ("OPT", {"word_embed_proj_dim": 32}, "word_embed_proj_dim is 32"),
    ("GPTJ", {"rotary_dim": 5}, "rotary_dim is 5"),
    ("GPT2", {"activation_function": "tanh"}, "activation_function is 'tanh'"),
    ("Granite", {"rope_parameters": {"rope_type": "proportional"}}, "rope_type is 'proportional'"),
    ("Granite", {"quantization_config": {"bits": 4}}, "quantization_config is"),
]


@pytest.mark.parametrize(("kind", "keys", "message"), REFUSED)
def test_what_we_lack_is_refused_by_name(kind: str, keys: dict[str, Any], message: str) -> None:
    values = next(configs(kind)) | keys
    with pytest.raises(UnsupportedModel) as caught:
        plan(Config(Path("config.json"), values))
    assert message in caught.value.message


def test_the_language_model_of_a_multimodal_gemma(tmp_path: Path) -> None:
    text = transformers.Gemma3TextConfig(**GEMMA, vocab_size=VOCAB, hidden_size=64, sliding_window=7)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.SiglipVisionConfig(**sizes, image_size=16, patch_size=4)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    peer = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    peer.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    model, x = checkpoint.model(), tokens()
    with torch.no_grad():
        assert_close(model(x)[0], peer(x).logits, LOGITS, "logits")
    gradients = published_gradients(tmp_path, model, x[:, :-1], x[:, 1:])
    assert gradients and all("language_model" in name for name in gradients)
    assert checkpoint.published["context"] == 131_072
    events = list(import_hf(tmp_path, out=tmp_path / "imported"))
    assert any("images are not" in event.message for event in events if isinstance(event, Notice))


@pytest.mark.parametrize(
    ("kind", "options", "old", "new", "buffer"),
    [
        ("GPT2", GPT2, "transformer.", "", "h.0.attn.bias"),
        ("OPT", OPT, "model.", "", ""),
        ("GPTNeoX", SIZES, "embed_out.", "lm_head.", "gpt_neox.layers.0.attention.masked_bias"),
        ("GPTNeoX", SIZES, "lm_head.", "embed_out.", "gpt_neox.layers.1.attention.rotary_emb.inv_freq"),
    ],
)
def test_names_of_other_versions(
    tmp_path: Path, kind: str, options: dict[str, Any], old: str, new: str, buffer: str
) -> None:
    peer = published(tmp_path, kind, **options)
    file = tmp_path / "model.safetensors"
    tensors = {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in load_file(file).items()}
    save_file(tensors | ({buffer: torch.ones(3)} if buffer else {}), file)
    x = tokens()
    with torch.no_grad():
        assert_close(Checkpoint.open(tmp_path).model()(x)[0], peer(x, use_cache=False).logits, LOGITS, "logits")


OLDER_YARN = {key: value for key, value in YARN.items() if key != "rope_theta"}
OLDER: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma 3": (
        "Gemma3",
        GEMMA | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        {
            "rope_parameters": None, "layer_types": None, "sliding_window_pattern": 2, "rope_theta": 2e5,
            "rope_local_base_freq": 3e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "gpt-neox": (
        "GPTNeoX",
        {"num_attention_heads": 4, "intermediate_size": 72, "num_hidden_layers": 2},
        {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 3e3},
    ),
    "phi": ("Phi", SIZES, {"rope_parameters": None, "partial_rotary_factor": 0.75, "rope_theta": 2e3}),
    "olmo 3": (
        "Olmo3",
        SIZES | {"sliding_window": 7},
        {"rope_parameters": None, "rope_theta": 2e5, "rope_scaling": OLDER_YARN},
    ),
    "cohere 2": ("Cohere2", SIZES | {"sliding_window": 7}, {"layer_types": None, "sliding_window_pattern": 3}),
    "phi 3": (
        "Phi3",
        SIZES,
        {
            "rope_parameters": None, "rope_theta": 2e3, "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
            "rope_scaling": {
                "type": "longrope", "short_factor": [1.0 + i / 4 for i in range(8)], "long_factor": [9.0] * 8
            },
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OLDER)
def test_configs_of_older_versions(tmp_path: Path, case: str) -> None:
    kind, options, older = OLDER[case]
    published(tmp_path, kind, **options)
    values = {**json.loads((tmp_path / "config.json").read_text()), **older}
    (tmp_path / "config.json").write_text(
        json.dumps({key: value for key, value in values.items() if value is not None})
    )
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    x = tokens()
    with torch.no_grad():
        expected = peer(x, use_cache=False).logits
        assert_close(Checkpoint.open(tmp_path).model()(x)[0], expected, LOGITS, "logits")


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("kind", "options", "context"),
    [
        ("Phi3", {"original_max_position_embeddings": 48, "rope_parameters": LONGROPE}, 48),
        (
            "Phi3",
            {"original_max_position_embeddings": 48, "rope_parameters": LONGROPE | {"long_factor": [1.0] * 8}},
            128,
        ),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}, 128),
        ("Granite", {}, 128),
    ],
)
def test_texts_are_as_long_as_their_positions_are_exact(
    tmp_path: Path, kind: str, options: dict[str, Any], context: int
) -> None:
    """Beyond, the angles of earlier tokens depend on how long the text becomes."""
    peer = published(tmp_path, kind, **SIZES | {"max_position_embeddings": 128} | options)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.published["context"] == context
    model = checkpoint.model()
    x = tokens(time=context)
    with torch.no_grad():
        assert_close(model(x)[0], peer(x, use_cache=False).logits, LOGITS, "logits")
        if exact_length(HuggingFaceModel(tmp_path).config) is not None:
            x = tokens(time=context + 1)
            changed = peer(x, use_cache=False).logits[:, :-1] - model(x)[0][:, :-1]
            assert changed.abs().max() > 0.01
