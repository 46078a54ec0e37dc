from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from synthe_core.data import files, packing, verification
from synthe_core.data.prepare import load, open_data, prepare, stats
from synthe_core.data.spec import DataSpec
from synthe_core.errors import InputError, WorkError
from synthe_core.events import Notice, Progress, Result
from synthe_core.storage.claim import partial_path
from tests.data.conftest import packed, prose, text_of, write_rows
from tests.paths import ROOT
from tests.processes import start

BPE = {"type": "bpe", "vocab": 400}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARD", 3000)
    monkeypatch.setattr(packing, "BATCH", 2000)


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "lock"}


@pytest.mark.parametrize("count", [3, 60, 500])
@pytest.mark.parametrize("tokenizer", ["bytes", BPE])
def test_all_text_is_packed_once_and_no_document_is_in_both_splits(
    tmp_path: Path, count: int, tokenizer: object, small_shards: None
) -> None:
    texts = [prose(i, 300) for i in range(count)]
    texts += texts[: count // 10]  # copies fall to the side of their originals
    data = packed(str(write_rows(tmp_path / "rows.jsonl", texts)), tokenizer=tokenizer, sequence=16, validation=0.1)
    train, validation = (text_of(split, data.tokenizer) for split in (data.sources[0].train, data.validation))
    size = sum(len(text.encode()) for text in texts)
    assert data.sources[0].train.bytes + data.validation.bytes == size
    assert 0.03 * size < data.validation.bytes < 0.25 * size
    if count < 20:  # each text is cut, and its tail is for validation
        assert [a + b for a, b in zip(train, validation, strict=True)] == [text.encode() for text in texts]
    else:
        assert not set(train) & set(validation)
        assert sorted(train + validation) == sorted(text.encode() for text in texts)
        assert data.sources[0].train.documents == len(train)
    for split in (data.sources[0].train, data.validation):
        assert split.bytes_in(split.read(0, split.tokens)) == split.bytes


def test_a_single_text_gives_its_tail_to_validation(tmp_path: Path) -> None:
    text = prose(1, 700_000)
    (tmp_path / "one.txt").write_text(text)
    data = packed(str(tmp_path / "one.txt"), validation=0.2)
    [train], [validation] = (text_of(split, data.tokenizer) for split in (data.sources[0].train, data.validation))
    assert train + validation == text.encode()
    assert train.endswith(b"\n")
    assert abs(len(validation) / len(text.encode()) - 0.2) < 0.01


def test_explicit_validation_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 4000))
    (tmp_path / "b.txt").write_text(prose(2, 2000))
    data = packed(str(tmp_path / "a.txt"), sequence=16, validation=str(tmp_path / "b.txt"))
    assert text_of(data.train[0].train, data.tokenizer) == [prose(1, 4000).encode()]
    assert text_of(data.validation, data.tokenizer) == [prose(2, 2000).encode()]
    assert [source.name for source in data.train] == [str(tmp_path / "a.txt")]
    with pytest.raises(InputError, match="both a source of training text and all of the validation text"):
        packed(str(tmp_path / "a.txt"), validation=str(tmp_path / "a.txt"))


def test_validation_can_be_disabled(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 4000))
    data = packed(str(tmp_path / "a.txt"), sequence=16, validation=0)
    assert (data.validation.tokens, data.validation.bytes) == (0, 0)
    assert data.train[0].train.bytes == len(prose(1, 4000).encode())


def test_packed_data_is_reused_until_the_source_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(prose(1, 4000))
    spec = DataSpec(sources=str(path), sequence=16)
    folder = load(spec).sources[0].folder
    assert list(open_data(spec)) == []
    assert load(spec.model_copy(update={"sequence": 8})).sources[0].folder == folder
    path.write_text(prose(2, 4000))
    os.utime(path, ns=(1, 1))
    again = load(spec)
    assert again.sources[0].folder != folder
    assert text_of(again.sources[0].train, again.tokenizer)[0].startswith(b"2.0 ")


@pytest.mark.parametrize("tokenizer", ["bytes", BPE])
def test_an_interrupted_preparation_resumes_to_the_same_bytes(
    tmp_path: Path, tokenizer: object, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [prose(i, 500) for i in range(150)])
    spec = DataSpec(sources=str(rows), tokenizer=tokenizer, sequence=16, limit=60_000)
    whole = load(spec).sources[0].folder
    assert len(list(whole.glob("train-*.bin"))) >= 3

    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "second"))
    save, saves, packed_pieces = packing._save, 0, []

    def dies(folder: Path, *rest: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 3:
            partial_path(folder / "train-00002.bin").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        save(folder, *rest)

    monkeypatch.setattr(packing, "_save", dies)
    with pytest.raises(KeyboardInterrupt):
        load(spec)
    monkeypatch.setattr(packing, "_save", save)
    batch = packing._batch
    monkeypatch.setattr(packing, "_batch", lambda pieces: packed_pieces.append(batch(pieces)) or packed_pieces[-1])
    events = list(open_data(spec))
    assert any(isinstance(event, Notice) and "going on after" in event.message for event in events)
    first = packed_pieces[0][0].document
    assert first > 10  # the finished shards' documents were not tokenized again
    assert everything(load(spec).sources[0].folder) == everything(whole)


def test_kill_minus_nine_loses_no_finished_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.txt").write_text(prose(3, 3_000_000))
    code = (
        "import sys, time\n"
        "from synthe_core.data import packing\n"
        "from synthe_core.data.prepare import open_data\n"
        "from synthe_core.data.spec import DataSpec\n"
        "packing.SHARD, packing.BATCH = 300_000, 250_000\n"
        "save = packing._save\n"
        "def slow(*args):\n"
        "    save(*args); print('saved', flush=True); time.sleep(0.1)\n"
        "packing._save = slow\n"
        "for event in open_data(DataSpec(sources=sys.argv[1])): pass\n"
    )
    root = ROOT
    command = [sys.executable, "-c", code, str(tmp_path / "long.txt")]
    with start(command, cwd=root, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == b"saved\n"
        assert p.stdout.readline() == b"saved\n"
        p.send_signal(signal.SIGKILL)
    monkeypatch.setattr(packing, "SHARD", 300_000)
    monkeypatch.setattr(packing, "BATCH", 250_000)
    spec = DataSpec(sources=str(tmp_path / "long.txt"))
    events = list(open_data(spec))
    assert any(isinstance(event, Notice) and "going on after" in event.message for event in events)
    killed = everything(load(spec).sources[0].folder)
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "second"))
    assert everything(load(spec).sources[0].folder) == killed


@pytest.mark.parametrize("harm", ["shard", "index", "missing", "bit", "documents"])
def test_damaged_packed_data_is_rebuilt(tmp_path: Path, harm: str) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 40_000))
    spec = DataSpec(sources=str(tmp_path / "a.txt"))
    folder = load(spec).sources[0].folder
    before = everything(folder)
    shard = folder / "train-00000.bin"
    if harm == "shard":
        os.truncate(shard, shard.stat().st_size - 2)
    elif harm == "index":
        (folder / "index.json").write_text('{"source": ')
    elif harm == "bit":
        shard.write_bytes(shard.read_bytes().replace(b"s", b"t", 1))
    elif harm == "documents":
        (folder / "train-00000.documents.bin").unlink()
    else:
        shard.unlink()
    load(spec)
    assert everything(folder) == before


def test_the_digests_of_shards_are_checked_again_only_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 40_000))
    spec = DataSpec(sources=str(tmp_path / "a.txt"))
    monkeypatch.setattr(verification, "SETTLED", -(10**18))  # the files are as old as they need be
    folder = load(spec).sources[0].folder
    shard = folder / "train-00000.bin"
    hashed: list[Path] = []
    digest = verification._digest
    monkeypatch.setattr(verification, "_digest", lambda paths: hashed.extend(paths) or digest(paths))
    load(spec)
    assert shard in hashed  # once, since it was written
    hashed.clear()
    load(spec)
    assert not hashed
    before, times = shard.read_bytes(), shard.stat()
    shard.write_bytes(before.replace(b"s", b"t", 1))
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    load(spec)
    assert shard in hashed and shard.read_bytes() == before


def test_files_that_have_just_changed_are_checked_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 40_000))
    spec = DataSpec(sources=str(tmp_path / "a.txt"))
    monkeypatch.setattr(verification, "SETTLED", 10**18)
    shard = load(spec).sources[0].folder / "train-00000.bin"
    hashed: list[Path] = []
    digest = verification._digest
    monkeypatch.setattr(verification, "_digest", lambda paths: hashed.extend(paths) or digest(paths))
    for _ in range(2):
        hashed.clear()
        load(spec)
        assert shard in hashed


def test_a_second_process_waits(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 4000))
    spec = DataSpec(sources=str(tmp_path / "a.txt"), sequence=16)
    folder = load(spec).sources[0].folder
    (folder / "index.json").unlink()
    lock = FileLock(folder / "lock")
    lock.acquire()
    work = open_data(spec)
    event = next(work)
    assert isinstance(event, Notice) and "another process is preparing" in event.message
    lock.release()
    assert any(isinstance(event, Progress) for event in work)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 4000))

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "write_file", full)
    with pytest.raises(WorkError, match=r"cannot write packed data to .*: No space left on device") as raised:
        packed(str(tmp_path / "a.txt"), sequence=16)
    assert "SYNTHE_CACHE" in (raised.value.hint or "")


def test_a_read_only_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(prose(1, 4000))
    spec = DataSpec(sources=str(tmp_path / "a.txt"), sequence=16)
    tokens = load(spec).validation.tokens

    def refused(*args: object, **keys: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refused)
    assert load(spec).validation.tokens == tokens
    with pytest.raises(WorkError, match=r"cannot write packed data to .*: Permission denied"):
        load(DataSpec(sources=str(tmp_path / "a.txt"), sequence=16, limit=3000))


def test_an_empty_validation_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 200)
    spec = DataSpec(sources=str(tmp_path / "a.txt"), sequence=16, validation=0.001)
    for _ in range(2):
        notices = [event for event in open_data(spec) if isinstance(event, Notice)]
        assert [notice.level for notice in notices] == ["warning"]
        assert "no document is in the validation split" in notices[0].message


def test_a_document_in_many_pieces_is_split_into_two_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document in many pieces: wherever the cut falls, each side is one whole document."""
    monkeypatch.setattr(files, "PIECE", 64)
    monkeypatch.setattr(packing, "SHARD", 1)
    monkeypatch.setattr(packing, "BATCH", 1)
    path = tmp_path / "a.txt"
    text = ("x" * 63 + "\n") * 10
    path.write_text(text)
    for share in (0.1, 0.3, 0.47, 0.5, 0.55, 0.9):
        data = packed(str(path), sequence=8, validation=share)
        [train], [validation] = (text_of(split, data.tokenizer) for split in (data.sources[0].train, data.validation))
        assert train + validation == text.encode()
        assert abs(len(validation) - share * len(text)) <= 32


def test_limit_ends_a_source(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [prose(i, 500) for i in range(90)])
    data = packed([{"source": str(rows), "limit": "20kB"}], sequence=16)
    assert 19_996 <= data.sources[0].train.bytes + data.validation.bytes <= 20_000


def test_prepare_and_stats_end_in_their_counts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab" * 2000)
    spec = DataSpec(sources=str(tmp_path / "a.txt"), sequence=16, validation=0)
    events = list(prepare(spec))
    assert any(isinstance(e, Progress) and (e.done, e.total, e.unit) == (4000, 4000, "B") for e in events)
    result = events[-1]
    assert isinstance(result, Result)
    assert (result.values["documents"], result.values["bytes"], result.values["tokens"]) == (1, 4000, 4001)
    assert result.values["bytes_per_token"] == round(4000 / 4001, 4)
    *_, last = stats(spec)
    assert isinstance(last, Result)
    share = np.array([2000, 2000, 1]) / 4001
    assert last.values["tokens_used"] == 3
    assert last.values["unigram_bits_per_byte"] == pytest.approx(
        -(share * np.log2(share)).sum() * 4001 / 4000, abs=1e-4
    )


def test_byte_counts_of_gpt2_on_real_text(shared: Callable[[str], Path]) -> None:
    path = shared("corpora/wikitext2/wiki.test.raw")
    data = packed(str(path), tokenizer=str(shared("tokenizers/gpt2")))
    assert data.sources[0].train.bytes + data.validation.bytes == path.stat().st_size
    for split in (data.sources[0].train, data.validation):
        assert split.bytes_in(split.read(0, split.tokens)) == split.bytes
    assert 3.5 < data.validation.bytes / data.validation.tokens < 5


def test_time_of_the_embedded_corpus(cache: Path) -> None:
    """Packs the default source for real; its splits are what every first run sees."""
    began = time.monotonic()
    data = load(DataSpec())
    assert time.monotonic() - began < 60
    share = data.validation.bytes / (data.validation.bytes + data.sources[0].train.bytes)
    assert 0.02 < share < 0.09
    assert data.sources[0].train.tokens == data.sources[0].train.bytes + data.sources[0].train.documents
