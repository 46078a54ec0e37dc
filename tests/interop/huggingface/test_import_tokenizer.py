"""Which tokens begin and end the texts of an imported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from synthe_core.data.tokenizers import END, load_tokenizer
from synthe_core.events import Notice, Result
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.offline import generate
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.importer import import_hf
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.models import add_tokenizer, transformer

STOP, TURN = 1, 2


def imported(folder: Path, **files: dict[str, Any]) -> tuple[Checkpoint, list[str]]:
    """The import of a small model with `folder`'s tokenizer and these further files, and its notices."""
    transformer(folder, layers=1, vocab_size=280, eos_token_id=None, bos_token_id=None)
    (folder / "generation_config.json").unlink()
    for name, content in files.items():
        path = folder / f"{name}.json"
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(old | content))
    events = list(import_hf(folder, out=folder.parent / "ours"))
    assert isinstance(events[-1], Result)
    notices = [event.message for event in events if isinstance(event, Notice)]
    return Checkpoint.open(folder.parent / "ours"), notices


@pytest.mark.parametrize(
    ("files", "end"),
    [
        ({"generation_config": {"eos_token_id": [STOP, TURN]}, "config": {"eos_token_id": TURN}}, STOP),
        ({"generation_config": {"eos_token_id": TURN}}, TURN),
        ({"config": {"eos_token_id": STOP}}, STOP),
        ({"tokenizer_config": {"eos_token": {"content": "<|turn|>"}}}, TURN),
    ],
)
def test_the_end_is_where_generation_ends(tmp_path: Path, files: Any, end: int) -> None:
    add_tokenizer(tmp_path / "theirs")
    checkpoint, notices = imported(tmp_path / "theirs", **files)
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.end == end and tokenizer.pieces[end] == b""
    assert any("may also end with <|turn|>" in line for line in notices) == isinstance(
        files.get("generation_config", {}).get("eos_token_id"), list
    )
    again = load_tokenizer(tokenizer.save(tmp_path))
    assert (again.end, again.begin, again.digest) == (end, 0, tokenizer.digest)


@pytest.mark.parametrize(
    ("template", "options", "begin"),
    [
        ("<s> $A", {}, 0),
        ("<s> $A", {"add_bos_token": False}, None),
        (None, {"add_bos_token": True, "bos_token": "<s>"}, 0),
        (None, {"bos_token": "<s>"}, None),
        ("$A <s>", {}, None),
    ],
)
def test_the_beginning_is_what_the_template_puts_there(
    tmp_path: Path, template: str | None, options: dict[str, Any], begin: int | None
) -> None:
    add_tokenizer(tmp_path / "theirs", template)
    checkpoint, _ = imported(tmp_path / "theirs", tokenizer_config=options, config={"eos_token_id": STOP})
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.begin == begin
    assert 0 not in tokenizer.encode("the sea")  # training text has no beginnings


def test_a_prompt_begins_as_the_model_expects(tmp_path: Path) -> None:
    """Greedy text equals that of the model given the beginning by hand, and differs from that without."""
    inner = add_tokenizer(tmp_path / "theirs")
    checkpoint, _ = imported(tmp_path / "theirs", config={"eos_token_id": STOP})
    model, tokenizer = checkpoint.model().eval(), checkpoint.tokenizer()

    def by_hand(tokens: list[int]) -> bytes:
        written: list[int] = []
        with torch.no_grad():
            while len(written) < 8:
                written.append(int(model(torch.tensor([tokens + written]))[0][0, -1].argmax()))
        assert STOP not in written
        return tokenizer.bytes_of(written)

    def ours(prompt: str) -> bytes:
        pieces = generate(LoadedModel("model", model, tokenizer), [prompt], 8, sampling=SamplingParams(temperature=0))
        return "".join(piece.text for piece in pieces).encode()

    bare = inner.encode("the sea", add_special_tokens=False).ids
    with_begin, without = (by_hand(tokens).decode("utf-8", "replace") for tokens in ([0, *bare], bare))
    assert ours("the sea").decode() == with_begin != without
    assert ours("").decode() == by_hand([0]).decode("utf-8", "replace")


def test_a_tokenizer_without_settings_is_imported_unchanged(tmp_path: Path) -> None:
    inner = add_tokenizer(tmp_path / "theirs", None)
    inner.add_special_tokens([END])
    inner.save(str(tmp_path / "theirs" / "tokenizer.json"))
    checkpoint, notices = imported(tmp_path / "theirs")
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.end == inner.token_to_id(END) and tokenizer.begin is None
    saved = tokenizers.Tokenizer.from_file(str(checkpoint.path / "tokenizer.json"))  # other programs can read it
    assert saved.get_vocab() == inner.get_vocab()
    assert len(notices) == 1


def test_without_a_tokenizer_the_model_has_none(tmp_path: Path) -> None:
    checkpoint, notices = imported(tmp_path / "theirs")
    assert "tokenizer.json" not in checkpoint.manifest.files
    assert any("has no tokenizer.json" in line for line in notices)


def test_a_model_without_an_end_token_is_reported(tmp_path: Path) -> None:
    add_tokenizer(tmp_path / "theirs")
    transformer(tmp_path / "theirs", layers=1, vocab_size=270, eos_token_id=None)
    (tmp_path / "theirs" / "generation_config.json").unlink()
    notices = [e.message for e in import_hf(tmp_path / "theirs", out=tmp_path / "ours") if isinstance(e, Notice)]
    assert any("has no end-of-text token" in line for line in notices)
