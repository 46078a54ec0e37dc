"""No text is trained on that is validated on, however it is spelled or stored."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from synthe_core.data import files, packing
from synthe_core.data.documents import digest_of
from synthe_core.data.labelled import Labelled
from synthe_core.data.prepare import Packed, open_data
from synthe_core.data.spec import DataSpec
from synthe_core.errors import InputError
from synthe_core.events import Notice
from tests.data.conftest import packed, prose, text_of, write_rows


def opened(sources: object, **keys: object) -> tuple[Packed, list[str]]:
    """The data, and the notices on the way."""
    work = open_data(DataSpec(sources=sources, sequence=16, **keys))
    notices = []
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            return end.value, notices
        if isinstance(event, Notice):
            notices.append(event.message)


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder d with train.txt and val.txt, and other names of val.txt beside it; it is the working folder too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.txt").write_text(prose(1, 6000))
    (tmp_path / "d" / "val.txt").write_text(prose(2, 3000))
    (tmp_path / "other").mkdir()
    os.symlink(tmp_path / "d" / "val.txt", tmp_path / "other" / "link.txt")
    os.link(tmp_path / "d" / "val.txt", tmp_path / "other" / "hard.txt")
    os.symlink(tmp_path / "d", tmp_path / "folder")
    (tmp_path / "copy.txt").write_text(prose(2, 3000))
    (tmp_path / "rows.json").write_text(json.dumps([{"text": prose(2, 3000).strip()}]))
    return tmp_path


SPELLINGS = ["d/val.txt", "./d/val.txt", "d/../d/val.txt", "d/v*.txt", "**/val.txt", "other/link.txt", "other/hard.txt"]
SPELLINGS += ["folder/val.txt", "copy.txt", "rows.json"]


@pytest.mark.parametrize("spelled", [*SPELLINGS, "absolute"])
@pytest.mark.parametrize("source", ["d", "./d", "folder", "d/*.txt"])
def test_validation_text_is_not_trained_on(texts: Path, source: str, spelled: str) -> None:
    data, notices = opened(source, validation=str(texts / "d" / "val.txt") if spelled == "absolute" else spelled)
    assert text_of(data.train[0].train, data.tokenizer) == [prose(1, 6000).encode()]
    assert text_of(data.validation, data.tokenizer)[0].strip() == prose(2, 3000).strip().encode()
    assert (data.train[0].train.documents, data.train[0].train.bytes) == (1, len(prose(1, 6000).encode()))
    assert notices == [f"{source}: 1 document is also in the validation text, and left out of training"]


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_the_same_text_on_both_sides_is_refused(texts: Path, spelled: str) -> None:
    with pytest.raises(InputError, match=r"'d/val\.txt' is both a source of training text and all of the validation"):
        packed("d/val.txt", sequence=16, validation=spelled)


def test_files_of_both_sides_are_seen_before_anything_is_packed(texts: Path, cache: Path) -> None:
    with pytest.raises(InputError, match="is both a source of training text"):
        packed("d/val.txt", sequence=16, validation="other/link.txt")
    assert not (cache / "data").exists()


def test_another_field_of_a_file_is_other_text(texts: Path) -> None:
    rows = [{"question": prose(i, 300), "answer": prose(i + 50, 300)} for i in range(20)]
    (texts / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, notices = opened([{"source": "qa.jsonl", "field": "question"}], field="answer", validation="qa.jsonl")
    assert (data.train[0].train.documents, data.validation.documents, notices) == (20, 20, [])


@pytest.mark.parametrize("tokenizer", ["bytes", {"type": "bpe", "vocab": 300}])
def test_documents_of_both_sides_are_left_out_of_training_wherever_they_lie(
    texts: Path, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many shards: between them, at their beginnings and ends, and documents in many pieces."""
    monkeypatch.setattr(packing, "SHARD", 700)
    monkeypatch.setattr(packing, "BATCH", 300)
    monkeypatch.setattr(files, "PIECE", 128)
    numbers = {0, 3, 4, 5, 17, 39}
    rows = write_rows(texts / "rows.jsonl", [prose(i, 300) for i in range(40)])
    held = write_rows(texts / "held.jsonl", [prose(i, 300) for i in [*sorted(numbers), 77]])
    data, notices = opened(str(rows), tokenizer=tokenizer, validation=str(held))
    split = data.train[0].train
    rest = [prose(i, 300).encode() for i in range(40) if i not in numbers]
    assert text_of(split, data.tokenizer) == rest
    assert (split.documents, split.bytes, split.left_out) == (34, sum(map(len, rest)), 6)
    assert split.bytes_in(split.read(0, split.tokens)) == split.bytes
    assert notices[-1].endswith("rows.jsonl: 6 documents are also in the validation text, and left out of training")
    for start in range(0, split.tokens - 64, 37):  # any stretch, also over what is left out
        assert split.read(start, 64).tolist() == split.read(0, split.tokens)[start : start + 64].tolist()

    long = texts / "long"
    long.mkdir()
    (long / "a.txt").write_text(prose(1, 3000))
    (long / "b.txt").write_text(prose(2, 3000))
    data, notices = opened(str(long), tokenizer=tokenizer, validation="copy.txt")
    assert text_of(data.train[0].train, data.tokenizer) == [prose(1, 3000).encode()]
    assert any("1 document is" in notice for notice in notices)


def test_a_document_that_one_source_holds_out_is_not_trained_on_in_another(texts: Path) -> None:
    few = texts / "few"
    few.mkdir()
    for number in (3, 4):
        (few / f"{number}.txt").write_text(prose(number, 2000))
    many = write_rows(texts / "many.jsonl", [prose(i, 2000) for i in range(60)])
    data, notices = opened([str(few), str(many)], validation=0.1)
    trained = {text for source in data.train for text in text_of(source.train, data.tokenizer)}
    assert len(notices) == 1 and "many.jsonl: " in notices[0]
    assert not {prose(3, 2000).encode(), prose(4, 2000).encode()} & trained
    assert not trained & set(text_of(data.validation, data.tokenizer))


def test_the_same_source_twice_is_trained_on(texts: Path) -> None:
    data, notices = opened(["d", "./d"], validation=0.1)
    assert notices == []
    assert data.sources[0].train.tokens == data.sources[1].train.tokens > 0


def test_labels_go_with_the_documents_that_stay(texts: Path) -> None:
    rows = [{"text": prose(i, 300), "kind": "ab"[i % 2]} for i in range(20)]
    (texts / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (texts / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:7]))
    data, _ = opened("rows.jsonl", validation="held.jsonl", labels="field:kind")
    labels = data.train[0].train.labels()
    assert [label for label, _ in labels] == ["ab"[i % 2] for i in range(7, 20)]
    assert sum(tokens for _, tokens in labels) == data.train[0].train.tokens
    assert Labelled.of(data, 2).classes == ("a", "b")


def test_the_digest_of_a_split_is_of_its_tokens(texts: Path) -> None:
    alone, _ = opened("d/train.txt", validation=0)
    whole, _ = opened("d", validation=0)
    without, _ = opened("d", validation="copy.txt")
    digests = [data.train[0].train.digest for data in (alone, whole, without)]
    assert len(set(digests)) == 3
    assert opened("d", validation="d/val.txt")[0].train[0].train.digest == digests[2]
    (texts / "d" / "train.txt").write_text(prose(1, 6000).replace("river", "rivet"))
    changed, _ = opened("d", validation="copy.txt")
    assert changed.train[0].train.tokens == without.train[0].train.tokens
    assert changed.train[0].train.digest != digests[2]


def digest_in(path: Path) -> set[bytes]:
    """The digests of the pieces of a file."""
    source = files.Files(str(path), [path], "text")
    return {piece.digest for piece in source.pieces()}


@pytest.mark.parametrize("stored", ["train.txt.gz", "train.jsonl"])
def test_documents_are_compared_to_their_end(texts: Path, monkeypatch: pytest.MonkeyPatch, stored: str) -> None:
    """Two texts of many pieces that differ in their last letter are two documents; the same text is one, in whatever
    pieces it is stored."""
    monkeypatch.setattr(files, "PIECE", 128)
    monkeypatch.setattr(packing, "BATCH", 300)
    long = prose(1, 3000)
    (texts / "long").mkdir()
    (texts / "long" / "other.txt").write_text(long[:-1] + "?")
    if stored.endswith("gz"):
        (texts / "long" / stored).write_bytes(gzip.compress(b"\n\n" + long.encode() + b"  \n" * 100))
        source = "long"
    else:
        write_rows(texts / "long" / "rows.jsonl", [long, long[:-1] + "?"])
        source = "long/rows.jsonl"
    (texts / "held.txt").write_bytes(b"\xef\xbb\xbf" + long.encode())
    data, notices = opened(source, validation="held.txt")
    assert text_of(data.train[0].train, data.tokenizer) == [(long[:-1] + "?").encode()]
    assert data.train[0].train.left_out == 1 and len(notices) == 1


def test_a_document_that_a_limit_cuts_is_the_same_document(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE", 128)
    with pytest.raises(InputError, match="is both a source of training text"):
        opened([{"source": "copy.txt", "limit": 1000}], validation="d/val.txt")


def test_a_digest_does_not_depend_on_the_pieces(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b" \n" + prose(3, 500).encode().replace(b" ", b"   \n  ") + b" \r\n" * 70
    whole = digest_of([text])
    assert whole == digest_of([text.strip()]) != digest_of([text.strip()[:-1]])
    for size in (1, 2, 3, 7, 64, 1000):
        assert digest_of([text[i : i + size] for i in range(0, len(text), size)]) == whole
    assert digest_of([]) == digest_of([b" ", b"\n"]) == digest_of([b""])
    (texts / "spaced.txt").write_bytes(text)
    monkeypatch.setattr(files, "PIECE", 64)
    assert digest_in(texts / "spaced.txt") == {whole}


def test_a_long_file_is_read_once_for_its_digest(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE", 128)
    read: list[Path] = []
    content = files.content

    def counted(path: Path) -> object:
        read.append(path)
        return content(path)

    monkeypatch.setattr(files, "content", counted)
    source = files.Files(str(texts / "copy.txt"), [texts / "copy.txt"], "text")
    for _ in range(3):
        assert len(list(source.pieces())) > 10
    assert len(read) == 4
    monkeypatch.setattr(files, "PIECE", 1 << 20)
    list(files.Files(str(texts / "copy.txt"), [texts / "copy.txt"], "text").pieces())
    assert len(read) == 5  # a short one is not
