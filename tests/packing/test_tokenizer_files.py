"""A .synapse file carries every file of a tokenizer."""

from __future__ import annotations

from pathlib import Path

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.packing.pack import pack
from synthe_core.packing.unpack import unpack
from synthe_core.packing.verify import verify
from synthe_core.storage.checkpoint import Checkpoint
from tests.packing.conftest import write_checkpoint

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def test_they_come_back(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    tokenizer.stops, tokenizer.sampling = frozenset({0, 4}), {"top_p": 0.9}
    tokenizer.chat_template, tokenizer.special_tokens = "{{ eos_token }}", {"eos_token": "<|end|>"}
    source = write_checkpoint(tmp_path / "small", tokenizer=tokenizer)
    list(pack(source, tmp_path / "one.synapse"))
    list(verify(tmp_path / "one.synapse"))
    list(pack(tmp_path / "one.synapse", tmp_path / "two.synapse"))
    list(unpack(tmp_path / "two.synapse", tmp_path / "model", only="model"))
    for path in (source, tmp_path / "one.synapse", tmp_path / "two.synapse", tmp_path / "model"):
        again = Checkpoint.open(path).tokenizer()
        assert (again.chat_template, again.sampling, again.named_tokens) == (
            tokenizer.chat_template,
            tokenizer.sampling,
            {"eos_token": "<|end|>"},
        )
        assert again.ends == {0, 4, 256}
    assert all((source / name).read_bytes() == (tmp_path / "model" / name).read_bytes() for name in FILES)
