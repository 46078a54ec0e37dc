"""Exported models give transformers' logits, and come back by import; what cannot be expressed is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.data.tokenizer_config import CHAT
from synthe_core.data.tokenizers import FileTokenizer, load_tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Notice, Result
from synthe_core.interop.huggingface.export_config import NoArchitecture, config_of
from synthe_core.interop.huggingface.exporter import export_hf, language_model
from synthe_core.interop.importer import import_hf
from synthe_core.storage.checkpoint import Checkpoint
from tests.evaluation.models import DELTA, saved
from tests.interop.huggingface.models import add_tokenizer, transformer
from tests.paths import SHARED
from tests.training.conftest import of


def attention(**options: Any) -> list[Any]:
    mlp = options.pop("mlp", {})
    return [{"type": "attention", "heads": 4, "kv_heads": 2} | options, {"type": "mlp", "hidden": 48} | mlp]


PLAIN: dict[str, Any] = {"qk_norm": False}
LLAMA3 = {"type": "llama3", "context": 16}
MODELS: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "the default": ("Qwen3", attention(), {}),
    "weighted norms, untied": ("Qwen3", attention(qk_norm="weighted", head_size=12), {"tie": False}),
    "norms and biases": ("Qwen3", attention(bias="qkv"), {"embed_norm": False}),
    "every other a window": ("Qwen3", attention(window=5) + attention(), {}),
    "plain": ("Llama", attention(**PLAIN), {"embed_norm": False}),
    "plain, all biases": ("Llama", attention(**PLAIN, bias="all", mlp={"bias": True}), {"norm_eps": 1e-3}),
    "stretched positions": ("Llama", attention(**PLAIN, rope=5e4, rope_scaling=LLAMA3), {}),
    "YaRN": ("Llama", attention(**PLAIN, rope_scaling={"type": "yarn", "factor": 4.0, "context": 16}), {}),
    "a window": ("Mistral", attention(**PLAIN, window=7), {"tie": False}),
    "biases before attention": ("Qwen2", attention(**PLAIN, bias="qkv"), {}),
    "no biases, every other a window": ("Qwen2", attention(**PLAIN, window=6) + attention(**PLAIN), {}),
    "mamba": ("Mamba", ["mamba"], {}),
    "mamba, biases": ("Mamba", [{"type": "mamba", "bias": True, "conv_bias": False, "state_size": 6}], {"tie": False}),
    "mamba2": ("Mamba2", [{"type": "mamba2", "head_size": 16, "groups": 2}], {"norm_eps": 1e-5}),
}


def exported(source: Path, out: Path) -> Path:
    *_, last = export_hf(source, out=out)
    assert isinstance(last, Result) and last.path == out
    return out


@pytest.mark.parametrize("case", MODELS)
def test_logits_survive_a_round_trip(tmp_path: Path, case: str) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    kind, block, model = MODELS[case]
    ours = Checkpoint.open(saved(tmp_path / "ours", block, **model)).model().eval()
    folder = exported(tmp_path / "ours", tmp_path / "theirs")
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(peer).__name__ == f"{kind}ForCausalLM"
    *_, last = import_hf(folder, out=tmp_path / "back")
    back = Checkpoint.open(last.path).model().eval()
    text = torch.randint(0, ours.vocab, (2, 37), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = ours(text)[0]
        assert expected.abs().max() > 0.5
        torch.testing.assert_close(peer(text, use_cache=False).logits, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(back(text)[0], expected, rtol=0, atol=1e-4)


def test_byte_tokenizers_agree(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = saved(tmp_path / "ours", attention())
    theirs = transformers.AutoTokenizer.from_pretrained(exported(path, tmp_path / "theirs"))
    ours = Checkpoint.open(path).tokenizer()
    for text in ("the sea", " Müller! 日本\n\n\tok. ", "\x00\x7f'll  ..."):
        assert theirs(text).input_ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.eos_token_id == ours.end == 256


def test_a_tokenizer_keeps_its_special_tokens_and_its_chat_template(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = tmp_path / "published"
    transformer(source, vocab_size=300, max_position_embeddings=99, eos_token_id=1)
    add_tokenizer(source)
    options = {"bos_token": "<s>", "eos_token": "<|stop|>", "chat_template": "{{ messages[0]['content'] }}<|turn|>"}
    (source / "tokenizer_config.json").write_text(json.dumps(options))
    list(import_hf(source, out=tmp_path / "ours"))
    tokenizer = load_tokenizer(tmp_path / "ours")
    assert tokenizer.chat_template == options["chat_template"] == (tmp_path / "ours" / CHAT).read_text()
    folder = exported(tmp_path / "ours", tmp_path / "theirs")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs("the sea").input_ids == [tokenizer.begin, *tokenizer.encode("the sea")]
    assert (theirs.bos_token, theirs.eos_token, theirs.chat_template) == tuple(options.values())
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 99


@pytest.mark.parametrize(
    ("block", "model", "message"),
    [
        (DELTA, {}, "it is delta, mlp"),
        (attention(), {"depth": {"min": 1}}, "past blocks"),
        (attention(rope=None), {}, "without positions"),
        (attention(norm_eps=1e-3), {}, "two epsilons"),
        (attention(window=5) + attention(window=6), {}, "windows of several sizes, 5, 6"),
        (attention(heads=4) + attention(heads=8), {}, "attention of several kinds"),
        (attention(mlp={"hidden": 32}) + attention(), {}, "MLPs of several kinds"),
        (attention(mlp={"bias": True}), {}, "an MLP with biases"),
        (attention(mlp={"activation": "gelu"}), {}, "no SwiGLU"),
        (attention(mlp={"gated": False}), {}, "no SwiGLU"),
        (attention(logit_cap=9.0), {}, "attention with logit_cap"),
        (attention(scale=0.3), {}, "attention with scale"),
        (attention(clip=3.0), {}, "attention with clip"),
        (attention(qk_norm="joint"), {}, "attention with qk_norm: joint"),
        (attention(), {"head_bias": True}, "has model.head_bias"),
        (attention(**PLAIN, window=4, bias="all"), {}, "a window and a bias"),
        ([{"type": "mamba2", "head_size": 16}], {}, "two epsilons"),
        (["mamba", {"type": "mamba", "state_size": 4}], {}, "mamba of several kinds"),
    ],
)
def test_models_without_a_published_architecture_become_our_own(
    tmp_path: Path, block: list[Any], model: dict[str, Any], message: str
) -> None:
    source = saved(tmp_path / "ours", block, **model)
    with pytest.raises(NoArchitecture, match=message):
        config_of(language_model(Checkpoint.open(source)), 64)
    *events, last = export_hf(source, out=tmp_path / "theirs")
    assert any(message in event.message and "SyntheForCausalLM" in event.message for event in of(events, Notice))
    assert last.values["architecture"] == "SyntheForCausalLM"


def test_output_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "ours", attention(), confidence={"hidden": 8})
    events = list(export_hf(path))
    assert events[-1].path == Path("exports/ours") and events[-1].path.is_dir()
    assert any("confidence head is left out" in event.message for event in of(events, Notice))
    with pytest.raises(InputError, match="exists already"):
        list(export_hf(path))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="exists already"):
        list(export_hf(path, out=tmp_path / "file"))


def test_the_tokenizers_of_published_models_keep_their_ids(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    file = SHARED / "data" / "tokenizers" / "gpt2" / "tokenizer.json"
    if not file.is_file():
        pytest.skip("no shared data here")
    ours = load_tokenizer(file)
    assert isinstance(ours, FileTokenizer)
    path = saved(tmp_path / "ours", attention(), ours)
    theirs = transformers.AutoTokenizer.from_pretrained(exported(path, tmp_path / "theirs"))
    text = "It's 12 o'clock,  Müller!\n\n  def f(x):\n\treturn x"
    assert theirs(text).input_ids == ours.encode(text) and theirs.decode(ours.encode(text)) == text
