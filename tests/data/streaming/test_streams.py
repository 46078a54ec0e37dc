"""A stream gives every token of its text once an epoch, and continues from any cursor with the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Event as Stop
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from synthe_core.data.documents import Piece, PieceReader
from synthe_core.data.hub import Hub
from synthe_core.data.prepare import open_data
from synthe_core.data.spec import DataSpec
from synthe_core.data.streaming import stream_shard, token_reader
from synthe_core.data.streaming.position import Position
from synthe_core.data.streaming.streamed_batches import StreamedBatches
from synthe_core.data.streaming.streamed_data import Streamed, open_stream
from synthe_core.errors import InputError, Interrupted, WorkError
from synthe_core.events import Event, Notice
from tests.data.conftest import packed, prose, text_of, write_rows

SEQUENCE = 16
TEXTS = [prose(number, 150 + 37 * (number % 7)) for number in range(40)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_shard, "SHARD", 640)
    monkeypatch.setattr(token_reader, "BATCH", 1000)  # bytes: several reads a shard


@pytest.fixture
def opened() -> Iterator[list[StreamedBatches]]:
    batches: list[StreamedBatches] = []
    yield batches
    for each in batches:
        each.close()


def collect(spec: DataSpec) -> tuple[Streamed, list[Event]]:
    events, work = [], open_stream(spec)
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            return end.value, events


def streamed(sources: Any, **keys: Any) -> Streamed:
    keys = {"sequence": SEQUENCE, "validation": 0.0, **keys}
    return collect(DataSpec(sources=sources, stream=True, **keys))[0]


def make_hub(folder: Path) -> str:
    (folder / "acme" / "words").mkdir(parents=True)
    for number in range(3):  # files, as the shards of a data set are
        write_rows(folder / "acme" / "words" / f"train-{number}-of-3.jsonl", ["", *TEXTS[number::3]])
    return "hub:acme/words"


def make_parquet(folder: Path) -> str:
    for name, texts in (("a", TEXTS[:23]), ("b", TEXTS[23:])):
        parquet.write_table(pa.table({"text": texts}), folder / f"{name}.parquet", row_group_size=5)
    return str(folder / "*.parquet")


def make_files(folder: Path) -> str:
    (folder / "text").mkdir()
    for number, text in enumerate(TEXTS):
        (folder / "text" / f"{number:02d}.txt").write_text(text)
    return str(folder / "text")


KINDS = {
    "hub": make_hub,
    "parquet": make_parquet,
    "jsonl": lambda folder: str(write_rows(folder / "rows.jsonl", TEXTS)),
    "files": make_files,
}


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same texts, in the layout of each kind of source; `datasets` reads those of the hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return KINDS[request.param](tmp_path / "work")


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return KINDS["jsonl"](tmp_path / "work")


def sequences(batches: StreamedBatches, count: int) -> torch.Tensor:
    batch = batches.next(count)
    return torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1)


def in_order(data: Streamed, opened: list[StreamedBatches], shards: int) -> list[np.ndarray]:
    """The tokens of the first shards, each but the first without the token that it shares with the one before."""
    batches = data.batches(0)
    opened.append(batches)
    supply = batches._sources[0].supply
    first = supply.first(0, Position(), None)
    return [first.tokens, *(supply.next().tokens[1:] for _ in range(shards - 1))]


def test_shards_hold_every_token_of_every_epoch_once(source: str, opened: list[StreamedBatches]) -> None:
    whole = packed(source, sequence=SEQUENCE, validation=0.0).sources[0].train
    once = whole.read(0, whole.tokens)
    shards = in_order(streamed(source), opened, 2 + 3 * len(once) // 640)
    tokens = np.concatenate(shards)
    assert len(tokens) > 2 * len(once)
    assert np.array_equal(tokens, np.resize(once, len(tokens)))  # again and again, in the same order
    assert min(map(len, shards[1:])) < 640  # one ends with its epoch


def test_a_cursor_restores_the_stream_at_any_sequence(source: str, opened: list[StreamedBatches], cache: Path) -> None:
    data = streamed(source)
    batches = data.batches(seed=3)
    opened.append(batches)
    count = 3 * 40 + 7  # more than three shards
    cursors, rows = [batches.cursor()], []
    for _ in range(count):
        rows.append(sequences(batches, 1))
        cursors.append(json.loads(json.dumps(batches.cursor())))
    for at in (0, 1, 39, 40, 41, 85):
        for number, path in enumerate(sorted((cache / "streams").glob("*/*.bin"))):
            if number % 3 == 0:
                path.unlink()
            elif number % 3 == 1:
                path.write_bytes(path.read_bytes()[:-8] + b"\x07" * 8)
        again = streamed(source).batches(seed=3)
        opened.append(again)
        again.seek(cursors[at])
        assert torch.equal(sequences(again, count - at), torch.cat(rows[at:])), at
        assert again.cursor() == cursors[-1]


def test_a_batch_may_be_cut(rows: str, opened: list[StreamedBatches]) -> None:
    one, other, seeded = (streamed(rows).batches(seed) for seed in (0, 0, 1))
    opened += [one, other, seeded]
    whole = sequences(one, 60)
    assert torch.equal(torch.cat([sequences(other, count) for count in (4, 4, 52)]), whole)
    assert not torch.equal(sequences(seeded, 60), whole)
    assert one.cursor() == other.cursor() != seeded.cursor() | {"drawn": []}


def test_few_shards_are_on_disk(rows: str, opened: list[StreamedBatches], cache: Path) -> None:
    batches = streamed(rows).batches(0)
    opened.append(batches)
    for _ in range(12):
        batches.next(40)
        assert len(list((cache / "streams").glob("*/*.bin"))) <= 2 * stream_shard.ON_DISK
    batches.close()
    names = {path.name for path in (cache / "streams").glob("*/*")}
    assert "00000000.bin" not in names and "00000011.bin" in names and "00000011.json" in names


def test_sources_take_turns_by_weight(tmp_path: Path, opened: list[StreamedBatches]) -> None:
    for name, letter in (("a", "a"), ("b", "b")):
        write_rows(tmp_path / "work" / f"{name}.jsonl", [letter * 90] * 30)
    data = streamed([{"source": "a.jsonl", "weight": 3}, "b.jsonl"])
    batches = data.batches(0)
    opened.append(batches)
    first = batches.next(100)
    counts = [int((first.inputs == ord(letter)).any(1).sum()) for letter in "ab"]
    assert counts == [75, 25]
    cursor = batches.cursor()
    again = data.batches(0)
    opened.append(again)
    again.seek(cursor)
    assert torch.equal(sequences(again, 90), sequences(batches, 90))


def test_held_out_documents_are_not_trained_on(source: str, opened: list[StreamedBatches]) -> None:
    data = streamed(source, validation=0.2)
    held_out = text_of(data.validation, data.tokenizer)
    assert 2 <= len(held_out) <= 20 and set(held_out) < {text.encode() for text in TEXTS}
    tokens = np.concatenate(in_order(data, opened, 30))
    ends = np.flatnonzero(tokens == data.tokenizer.end)
    trained = {bytes(tokens[a + 1 : b].tolist()) for a, b in pairwise(ends)}
    assert trained == {text.encode() for text in TEXTS} - set(held_out)


def test_a_source_of_validation_text_is_left_out_of_training(
    rows: str, tmp_path: Path, opened: list[StreamedBatches]
) -> None:
    write_rows(tmp_path / "work" / "held_out.jsonl", [f"  {TEXTS[3]}\n", "another text"])
    data = streamed(rows, validation="held_out.jsonl")
    assert len(text_of(data.validation, data.tokenizer)) == 2
    tokens = bytes(np.concatenate(in_order(data, opened, 20)).clip(max=255).astype(np.uint8))
    assert TEXTS[3].encode() not in tokens and TEXTS[4].encode() in tokens
    with pytest.raises(InputError, match="both a source of training text and all of the validation text"):
        streamed(rows, validation=rows)


def test_a_limit_is_where_the_epoch_ends(rows: str, opened: list[StreamedBatches]) -> None:
    whole = packed(rows, sequence=SEQUENCE, validation=0.0, limit=2000).sources[0].train
    data = streamed(rows, limit=2000)
    tokens = np.concatenate(in_order(data, opened, 8))
    assert np.array_equal(tokens, np.resize(whole.read(0, whole.tokens), len(tokens)))
    batches, again = data.batches(0), data.batches(0)
    opened += [batches, again]
    batches.next(100)
    again.seek(batches.cursor())
    assert torch.equal(sequences(again, 100), sequences(batches, 100))


def test_a_trained_tokenizer_reads_no_validation_text(rows: str, opened: list[StreamedBatches]) -> None:
    data = streamed(rows, validation=0.2, tokenizer={"type": "bpe", "vocab": 280})
    batches = data.batches(0)
    opened.append(batches)
    assert int(batches.next(80).inputs.max()) > 256
    assert streamed(rows, validation=0.2, tokenizer={"type": "bpe", "vocab": 280}).tokenizer.digest == (
        data.tokenizer.digest
    )


def test_changed_text_is_refused(rows: str, opened: list[StreamedBatches]) -> None:
    batches = streamed(rows).batches(0)
    opened.append(batches)
    batches.next(100)
    write_rows(Path(rows), [text.replace("river", "rover") for text in TEXTS])
    again = streamed(rows).batches(0)
    opened.append(again)
    again.seek(batches.cursor())
    with pytest.raises(InputError, match=r"rows\.jsonl' has changed since the run began") as refused:
        again.next(1)
    assert "\n" not in refused.value.message and "revision" in (refused.value.hint or "")


def test_touched_text_is_the_same(rows: str, opened: list[StreamedBatches]) -> None:
    batches, path = streamed(rows).batches(0), Path(rows)
    opened.append(batches)
    batches.next(100)
    path.write_bytes(path.read_bytes())
    again = streamed(rows).batches(0)
    opened.append(again)
    again.seek(batches.cursor())
    assert torch.equal(sequences(again, 50), sequences(batches, 50))


@pytest.mark.parametrize(
    ("harm", "value"),
    [
        ("sources", []),
        ("sources", 7),
        ("sources", [{"shard": -1, "start": {}, "digest": None, "drawn": 0}]),
        ("sources", [{"shard": 0, "start": {"epoch": 0}, "digest": None, "drawn": 0}]),
        ("sources", [{"shard": 0, "start": Position().to_json(), "digest": None, "drawn": 10**6}]),
        ("sources", [{"shard": 0, "start": Position(place=7).to_json(), "digest": None, "drawn": 0}]),
        ("drawn", [True]),
    ],
)
def test_a_damaged_cursor_is_one_line(rows: str, opened: list[StreamedBatches], harm: str, value: Any) -> None:
    batches = streamed(rows).batches(0)
    opened.append(batches)
    with pytest.raises(InputError, match="the place in the training text is damaged"):
        batches.seek(batches.cursor() | {harm: value})
        batches.next(1)


def test_too_little_text_is_refused(tmp_path: Path, opened: list[StreamedBatches]) -> None:
    write_rows(tmp_path / "work" / "short.jsonl", ["abc"])
    batches = streamed("short.jsonl").batches(0)
    opened.append(batches)
    with pytest.raises(InputError, match=r"'short.jsonl' is shorter than one sequence: it has 4 training tokens"):
        batches.next(1)


def test_no_validation_document_at_the_beginning_is_noted(rows: str) -> None:
    data, events = collect(DataSpec(sources=rows, stream=True, sequence=SEQUENCE, validation=1e-9))
    assert data.validation.tokens == 0
    notes = [event.message for event in events if isinstance(event, Notice)]
    assert len(notes) == 1 and "no document at its beginning is in the validation split" in notes[0]


def test_a_fault_of_a_row_names_it(tmp_path: Path, opened: list[StreamedBatches]) -> None:
    path = write_rows(tmp_path / "work" / "rows.jsonl", TEXTS)
    path.write_text(path.read_text() + '{"body": "no text"}\n')
    batches = streamed("rows.jsonl").batches(0)
    opened.append(batches)
    with pytest.raises(InputError, match=r"rows\.jsonl, line 41: unknown field 'text'"):
        batches.next(10_000)


def test_a_broken_connection_skips_no_row(
    tmp_path: Path, opened: list[StreamedBatches], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading on after the error fails again; a new process continues from its cursor."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    name = make_hub(tmp_path / "work")
    expected = streamed(name).batches(0)
    opened.append(expected)
    rows = sequences(expected, 300)
    expected.close()
    numbered = Hub._numbered

    def breaks(self: Hub, rows: Any, number: int) -> Any:
        for count, row in enumerate(numbered(self, rows, number)):
            if count == 9:
                raise WorkError("reset by peer")
            yield row

    for path in (tmp_path / "cache" / "streams").glob("*/*"):
        path.unlink()
    batches = streamed(name).batches(0)
    opened.append(batches)
    monkeypatch.setattr(Hub, "_numbered", breaks)
    read = 0
    with pytest.raises(WorkError, match="reset by peer"):
        for read in range(300):
            assert torch.equal(sequences(batches, 1), rows[read : read + 1])
    cursor = batches.cursor()
    with pytest.raises(WorkError, match="reset by peer"):
        batches.next(300)
    monkeypatch.setattr(Hub, "_numbered", numbered)
    again = streamed(name).batches(0)
    opened.append(again)
    again.seek(cursor)
    assert torch.equal(sequences(again, 300 - read), rows[read:])


class Stalled:
    """A source that gives no piece after its first ones until it is released."""

    def __init__(self, pieces: PieceReader, count: int) -> None:
        self._pieces, self._count = pieces, count
        self.reached, self.released = Stop(), Stop()

    @property
    def place(self) -> Any:
        return self._pieces.place

    def __iter__(self) -> Iterator[Piece]:
        for number, piece in enumerate(self._pieces):
            if number == self._count:
                self.reached.set()
                self.released.wait()
            yield piece


def test_a_stream_that_stalls_is_left(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a wait for text nor the end of the stream waits for the thread that reads."""
    data, stop = streamed(rows), Stop()
    source = data.sources[0].corpus.source
    stalled = Stalled(source.reader(None), 3)
    monkeypatch.setattr(type(source), "reader", lambda self, place=None: stalled)
    batches = data.batches(0, stop)
    Thread(target=lambda: (stalled.reached.wait(), stop.set())).start()
    with pytest.raises(Interrupted, match="stopped while reading the training text"):
        batches.next(1)
    with pytest.raises(Interrupted):
        batches.next(1)
    batches.close()
    assert not stalled.released.is_set()
    stalled.released.set()


def test_streamed_data_are_not_prepared(rows: str) -> None:
    with pytest.raises(InputError, match=r"data\.stream is set: the text is read while training"):
        list(open_data(DataSpec(sources=rows, stream=True)))
