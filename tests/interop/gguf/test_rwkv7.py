"""RWKV-7 in a GGUF file: the model of flash-linear-attention's folder, and its tokenizer through export and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.data.longest_match import LongestMatchTokenizer
from synthe_core.errors import InputError
from synthe_core.inference.offline import generate
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.gguf.exporter import export_gguf
from synthe_core.interop.gguf.model import GgufModel
from synthe_core.interop.huggingface.exporter import export_hf
from synthe_core.interop.load import load_model
from synthe_core.packing.pack import pack
from synthe_core.storage.checkpoint import Checkpoint
from tests.data.test_longest_match import WORDS, small
from tests.evaluation.models import saved
from tests.interop.gguf import rwkv7
from tests.interop.gguf.test_exporter import attention

SIZES = {"width": 24, "head": 8, "layers": 3, "hidden": 40, "vocab": 300}
TOKENS: dict[str, Any] = {
    "tokenizer_model": "rwkv",
    "token_list": ["<s>", *(f"\\x{byte:02x}" for byte in range(256)), "the", " sea", "\\n\\n", "[PAD260]"],
    "token_types": [3, *[1] * 259, 5],
    "eos_token_id": 0,
    "bos_token_id": 0,
    "eot_token_id": 259,
    "chat_template": "{{ messages[0].content }}",
}


def test_a_file_is_the_model_of_the_folder(tmp_path: Path) -> None:
    given = rwkv7.tensors(**SIZES)
    theirs = Checkpoint.open(rwkv7.folder(tmp_path / "theirs", given, SIZES["head"]))
    ours = Checkpoint.open(rwkv7.write(tmp_path / "model.gguf", given, SIZES["head"]))
    assert theirs.recipe.model == ours.recipe.model
    assert theirs.tensors.keys() == ours.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert tensor.equal(ours.tensors[name]), name
    text = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = ours.model().eval()(text)[0]
        assert logits.std() > 0.1 and logits.equal(theirs.model().eval()(text)[0])
    assert ours.context == 1 << 20


def test_its_tokenizer_is_in_the_file(tmp_path: Path) -> None:
    path = rwkv7.write(tmp_path / "model.gguf", rwkv7.tensors(**SIZES), SIZES["head"], **TOKENS)
    tokenizer = Checkpoint.open(path).tokenizer()
    assert isinstance(tokenizer, LongestMatchTokenizer)
    assert tokenizer.encode("the sea\n\n\xe9") == [257, 258, 259, 0xC3 + 1, 0xA9 + 1]
    assert tokenizer.end == 0 and tokenizer.begin is None and tokenizer.ends == {0, 259}
    assert tokenizer.encode_marked("<s>the") == [0, 257] and tokenizer.encode("<s>")[0] == ord("<") + 1
    assert tokenizer.chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("token_list", ["<s>", *(f"\\x{byte:02x}" for byte in range(256)), "the", "the", "\\n\\n", "[PAD260]"]),
        ("token_list", ["<s>", *(f"\\x{byte:02x}" for byte in range(255)), "a", "the", " sea", "\\n\\n", "[PAD260]"]),
        ("token_list", ["<s>", *(f"\\x{byte:02x}" for byte in range(256)), "the", "", "\\n\\n", "[PAD260]"]),
        ("token_list", ["<s>", *(f"\\x{byte:02x}" for byte in range(256)), "the", "\\", "\\n\\n", "[PAD260]"]),
        ("token_list", ["<s>", *(f"\\x{byte:02x}" for byte in range(256)), "the", "\\xg1", "\\n\\n", "[PAD260]"]),
        ("token_types", [1] * 260 + [5]),
        ("eos_token_id", 5),
        ("eos_token_id", 400),
    ],
)
def test_a_vocabulary_that_is_none_is_one_line(tmp_path: Path, key: str, value: Any) -> None:
    path = rwkv7.write(tmp_path / "model.gguf", rwkv7.tensors(**SIZES), SIZES["head"], **TOKENS | {key: value})
    with pytest.raises(InputError) as caught:
        Checkpoint.open(path).tokenizer()
    assert "\n" not in caught.value.message and len(caught.value.message) < 300 + len(str(tmp_path))


ODD: list[Any] = [None, "x", -1, 0, 5, 2**32 - 1, 0.5, float("nan"), True, ["a"]]


def test_a_value_of_a_wrong_kind_or_size_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rwkv7.write(tmp_path / "model.gguf", rwkv7.tensors(**SIZES), SIZES["head"])
    whole, refused = GgufModel(path).file, 0
    for key in [key for key in whole.metadata if not key.startswith("general.")]:
        for value in ODD:
            values = {name: each for name, each in whole.metadata.items() if name != key}
            with monkeypatch.context() as patch:
                patch.setattr(whole, "metadata", values if value is None else values | {key: value})
                patch.setattr("synthe_core.interop.gguf.model.GgufFile", lambda _: whole)
                try:
                    Checkpoint.open(path).tensors  # noqa: B018 (opening them checks their shapes)
                except InputError as error:
                    assert "\n" not in error.message
                    refused += 1
    assert refused > 5 * 9


def test_the_tokenizer_survives_export_pack_and_generation(tmp_path: Path) -> None:
    source = saved(tmp_path / "ours", attention(), small(), vocab=300)
    list(export_gguf(source, out=tmp_path / "model.gguf", quantize="f32"))
    list(pack(source, tmp_path / "ours.synapse"))
    list(export_hf(source, out=tmp_path / "folder"))
    texts = []
    for path in (source, tmp_path / "model.gguf", tmp_path / "ours.synapse", tmp_path / "folder"):
        tokenizer = Checkpoint.open(path).tokenizer()
        assert isinstance(tokenizer, LongestMatchTokenizer)
        for text in WORDS:
            assert tokenizer.encode(text) == small().encode(text)
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.end == small().end
        deltas = generate(load_model(path, "m"), ["the sea"], 12, sampling=SamplingParams(temperature=0))
        texts.append("".join(delta.text for delta in deltas))
    assert texts[0] and texts == [texts[0]] * len(texts)
