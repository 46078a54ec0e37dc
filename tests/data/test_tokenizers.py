from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from synthe_core.data.prepare import load, open_data
from synthe_core.data.spec import DataSpec
from synthe_core.data.tokenizers import END, ByteTokenizer, FileTokenizer, Tokenizer, load_tokenizer, open_tokenizer
from synthe_core.errors import InputError, WorkError
from synthe_core.events import Notice
from tests.data.conftest import prose, write_rows
from tests.paths import ROOT
from tests.processes import run_program

TEXT = "naïve café — 雨 🙂🙂 <|endoftext|> tabs\t\tand  spaces\n\n\nδρόμος\r\n"


@pytest.fixture(params=["bytes", "bpe", "gpt2"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path, shared: Callable[[str], Path]) -> Tokenizer:
    if request.param == "bytes":
        return ByteTokenizer()
    if request.param == "gpt2":
        return open_tokenizer(str(shared("tokenizers/gpt2")))
    return trained(tmp_path)


def trained(tmp_path: Path, vocab: int = 320) -> Tokenizer:
    rows = tmp_path / "rows.jsonl"
    if not rows.exists():
        write_rows(rows, [prose(i) for i in range(30)])
    return load(DataSpec(sources=str(rows), tokenizer={"type": "bpe", "vocab": vocab}, sequence=8)).tokenizer


def test_text_round_trips_and_every_byte_is_counted(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.end not in ids  # the name of a special token in a text is only text
    assert tokenizer.widths[ids].sum() == len(TEXT.encode())
    assert tokenizer.widths[tokenizer.end] == 0
    assert max(ids) < tokenizer.vocab_size == len(tokenizer.widths)
    assert tokenizer.decode([*ids, tokenizer.end, tokenizer.vocab_size + 3]) == TEXT
    batch = tokenizer.encode_batch([TEXT, TEXT.encode(), ""])
    assert [b.tolist() for b in batch] == [ids, ids, []]


def test_half_a_surrogate_pair_is_a_question_mark(tokenizer: Tokenizer) -> None:
    expected = tokenizer.encode("a?b")
    assert tokenizer.encode("a\ud800b") == tokenizer.encode_marked("a\udfffb") == expected
    assert [ids.tolist() for ids in tokenizer.encode_batch(["a\udcffb", ""])] == [expected, []]


def test_characters_split_between_tokens_are_held_back(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.decoder()
    pieces = [decoder.push(i) for i in tokenizer.encode("é🙂雨\U0001f9ea!")]
    assert "".join(pieces) + decoder.flush() == "é🙂雨\U0001f9ea!"
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_replaced_only_at_the_end() -> None:
    decoder = ByteTokenizer().decoder()
    assert decoder.push([ord("a"), 0xF0, 0x9F]) == "a"
    assert decoder.push(256) == ""
    assert decoder.flush() == "\ufffd"


def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    path = tokenizer.save(folder)
    again = load_tokenizer(folder)
    assert path == folder / "tokenizer.json"
    assert (again.vocab_size, again.end, again.digest) == (tokenizer.vocab_size, tokenizer.end, tokenizer.digest)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.pieces == tokenizer.pieces


def test_bytes_are_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(b"\xff\x00a") == [255, 0, 97]
    assert (tokenizer.vocab_size, tokenizer.end) == (257, 256)
    assert tokenizer.reads_bytes


def test_training_is_deterministic_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("synthe_core.data.bpe.trainers.BpeTrainer", None)  # the second time nothing is trained
        assert trained(tmp_path).digest == first.digest
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "elsewhere"))
    assert trained(tmp_path).digest == first.digest
    assert first.vocab_size == 320
    assert len(first.encode(prose(3))) < len(prose(3).encode()) / 2


def test_a_vocabulary_larger_than_the_text_supports_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "small.txt"
    path.write_text("abcabcabc\n" * 40)
    spec = DataSpec(sources=str(path), tokenizer={"type": "bpe", "vocab": 3000}, sequence=4)
    notices = [event for event in open_data(spec) if isinstance(event, Notice)]
    assert [notice.level for notice in notices] == ["warning"]
    assert "too few repeats for 3000 tokens" in notices[0].message


def test_an_end_is_added_where_a_tokenizer_has_none(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = FileTokenizer(inner, "words")
    assert (tokenizer.end, tokenizer.vocab_size) == (3, 4)
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"][0]["content"] == END
    assert load_tokenizer(tmp_path).end == 3


def test_byte_fallback_tokens_are_one_byte() -> None:
    vocab = {"<unk>": 0, "</s>": 1, "▁a": 2, "▁": 3, "b": 4} | {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    inner = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    inner.add_special_tokens(["</s>"])
    tokenizer = FileTokenizer(inner, "fallback")
    assert tokenizer.end == 1
    assert tokenizer.bytes_of(tokenizer.encode("雨b")) == "雨b".encode()
    assert tokenizer.widths[[1, 2, 3, 5 + 0xE9]].tolist() == [0, 2, 1, 1]


def test_no_warning_when_a_process_forks_after_encoding() -> None:
    code = (
        "import os\n"
        "from synthe_core.data.tokenizers import FileTokenizer\n"
        "import tokenizers\n"
        "inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, 'u': 1}, unk_token='u'))\n"
        "FileTokenizer(inner, 'w').encode_batch(['a'] * 100)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    inner.encode('a'); os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
    )
    done = run_program([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("byte", "unknown tokenizer 'byte'", "did you mean 'bytes'?"),
        ("bpee", "unknown tokenizer 'bpee'", "did you mean 'bpe'?"),
        ("gpt2", "unknown tokenizer 'gpt2'", "hub:NAME"),
        ("missing/tokenizer.json", "no such tokenizer file", "a tokenizer is"),
    ],
)
def test_unknown_names(name: str, message: str, hint: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        open_tokenizer(name)
    assert hint in (raised.value.hint or "")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "what"}}'])
def test_files_that_are_no_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json is no tokenizer\.json"):
        open_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="holds no tokenizer"):
        open_tokenizer(str(tmp_path))


def test_the_hub_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("acme/words", "hub:words"):
        with pytest.raises(WorkError, match=r"tokenizer '.*words' cannot be read: offline mode is on") as raised:
            open_tokenizer(name)
        assert "local file" in (raised.value.hint or "")


def test_the_hub_is_contacted_only_for_files_not_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: Callable[[str], Path]
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    requests: list[str] = []

    def download(name: str, file: str, **keys: object) -> str:
        requests.append("cache" if keys.get("local_files_only") else "download")
        if len(requests) == 1:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        return str(shared("tokenizers/gpt2/tokenizer.json"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, timeout: requests.append(name))
    assert open_tokenizer("acme/words").vocab_size == 50257
    assert requests == ["cache", "acme/words", "download"]
    assert open_tokenizer("hub:words").vocab_size == 50257
    assert requests[3:] == ["cache"]


def test_widths_are_an_array_for_fast_sums(tokenizer: Tokenizer) -> None:
    assert tokenizer.widths.dtype == np.int64
    assert tokenizer.widths.tolist() == [len(tokenizer.bytes_of([i])) for i in range(tokenizer.vocab_size)]
