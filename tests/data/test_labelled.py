"""Labelled text: the class of each passage, how documents are split, and the errors where there are no labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from synthe_core.data.labelled import Labelled, LabelledStream
from synthe_core.data.prepare import load
from synthe_core.data.spec import DataSpec
from synthe_core.errors import InputError


def spec(**data: object) -> DataSpec:
    return DataSpec.model_validate({"sequence": 8, "validation": 0.25, "labels": "path"} | data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three folders of documents that are written in a letter of their own, and a stray one."""
    for label, count in (("a", 12), ("b", 9), ("c", 4)):
        (tmp_path / "texts" / label / "deep").mkdir(parents=True)
        for number in range(count):
            place = tmp_path / "texts" / label / ("deep" if number % 2 else "")
            (place / f"{number}.txt").write_text(label * (5 + 3 * number) + "\n")
    (tmp_path / "texts" / "stray.txt").write_text("z" * 50)
    return tmp_path / "texts"


def test_every_passage_is_of_its_class_and_of_one_side(folder):
    packed = load(spec(sources=str(folder)))
    labelled = Labelled.of(packed, 2)
    assert labelled.classes == ("a", "b")
    seen = set()
    batch = LabelledStream(packed, labelled, 4).next(300)
    for row, target, length in zip(batch.inputs, batch.targets, batch.lengths, strict=True):
        letter = "ab"[int(target[length - 1])]
        assert set(row[:length].tolist()) <= {ord(letter), ord("\n"), packed.tokenizer.end}
        assert (target != -100).sum() == 1 and (row[length:] == 0).all()
        seen.add(letter)
    assert seen == {"a", "b"} and batch.tokens == int(batch.lengths.sum())
    windows = list(labelled.windows(10_000, 3))
    assert sum(len(window.inputs) for window in windows) == len(labelled.validation.starts) > 0


def test_documents_are_split_from_their_start_and_short_remainders_dropped(tmp_path):
    lengths = [3, 8, 11, 12, 17]  # the end of a document is a token more
    rows = [{"text": "x" * n, "label": str(n)} for n in lengths] * 4
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    packed = load(spec(sources=str(tmp_path / "rows.jsonl"), labels="field:label", validation=0.0))
    labelled = Labelled.of(packed, 5)
    cut: dict[str, set[tuple[int, ...]]] = {}
    for place, passage in enumerate(zip(*labelled.train[0], strict=True)):
        cut.setdefault(labelled.classes[passage[2]], set())
        cut[labelled.classes[passage[2]]] |= {(int(passage[1]),)}
        assert packed.train[0].train.read(int(passage[0]), 1) == ord("x"), place
    assert cut == {"3": {(4,)}, "8": {(8,)}, "11": {(8,), (4,)}, "12": {(8,), (5,)}, "17": {(8,)}}
    assert len(labelled.train[0].starts) == 4 * (1 + 1 + 2 + 2 + 2)


def test_the_stream_visits_all_and_a_cursor_restores_it(folder):
    packed = load(spec(sources=str(folder)))
    labelled = Labelled.of(packed, 3)
    count = len(labelled.train[0].starts)
    stream = LabelledStream(packed, labelled, 4, seed=1)
    first = stream.next(count)
    places = sorted(labelled.train[0].starts.tolist())
    order = stream._order._order(0, 0)
    assert sorted(labelled.train[0].starts[order].tolist()) == places
    cursor = stream.cursor()
    after = stream.next(5)
    again = LabelledStream(packed, labelled, 4, seed=1)
    again.seek(cursor)
    for one, other in zip(after[:3], again.next(5)[:3], strict=True):
        assert torch.equal(one, other)
    other_seed = LabelledStream(packed, labelled, 4, seed=2).next(count)
    assert not torch.equal(first.inputs, other_seed.inputs)


def test_parquet_rows_have_labels(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": ["north wind"] * 6 + ["south sea"] * 6, "side": [1] * 6 + [0] * 6})
    parquet.write_table(table, tmp_path / "rows.parquet")
    packed = load(spec(sources=str(tmp_path / "rows.parquet"), labels="field:side", validation=0.0))
    labelled = Labelled.of(packed, 2)
    assert labelled.classes == ("0", "1")
    for start, label in zip(labelled.train[0].starts, labelled.train[0].labels, strict=True):
        assert bytes(packed.train[0].train.read(int(start), 1).tolist()) == (b"s", b"n")[label]


def test_invalid_sources_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"3 different labels, and model\.head\.classes is 4") as few:
        Labelled.of(load(spec(sources=str(folder))), 4)
    assert few.value.hint == "set model.head.classes=3"
    (tmp_path / "plain.txt").write_text("nothing but text " * 50)
    with pytest.raises(InputError, match="no document has such a label"):
        Labelled.of(load(spec(sources=str(tmp_path / "plain.txt"))), 2)
    (tmp_path / "rows.jsonl").write_text('{"text": "abc", "lable": "x"}\n')
    with pytest.raises(InputError, match="unknown field 'label'") as misspelt:
        load(spec(sources=str(tmp_path / "rows.jsonl"), labels="field:label"))
    assert "did you mean 'lable'? (set data.labels)" in misspelt.value.hint
    (tmp_path / "rows.jsonl").write_text('{"text": "abc", "label": 1.5}\n')
    with pytest.raises(InputError, match="holds a float, no label"):
        load(spec(sources=str(tmp_path / "rows.jsonl"), labels="field:label"))


def test_labels_have_their_own_folder_and_change_no_other(folder):
    bare = load(spec(sources=str(folder), labels=None))
    labelled = load(spec(sources=str(folder)))
    assert bare.sources[0].folder != labelled.sources[0].folder
    assert not list(bare.sources[0].folder.glob("*.labels.json"))
    assert bare.sources[0].train.tokens == labelled.sources[0].train.tokens


def test_the_standard_library_has_its_packages():
    packed = load(spec(sources="stdlib", sequence=1024, validation=0.1, limit="6MB"))
    assert {"asyncio", "email"} <= set(Labelled.of(packed, 8).classes)
