from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from synthe_core.data import packing
from synthe_core.data.prepare import Packed
from synthe_core.data.stream import Stream, windows
from synthe_core.errors import InputError
from tests.data.conftest import packed, prose, write_rows

T = 17


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARD", 500)  # sequences that lie across shards are the rule
    monkeypatch.setattr(packing, "BATCH", 300)


def corpus(tmp_path: Path, weights: tuple[float, ...] = (1,)) -> Packed:
    sources = []
    for number, weight in enumerate(weights):
        letter = chr(ord("a") + number)
        rows = write_rows(tmp_path / f"{letter}.jsonl", [f"{letter}{i:05d}|" * 40 for i in range(25)])
        sources.append({"source": str(rows), "weight": weight})
    return packed(sources, sequence=T)


def rows_of(stream: Stream, counts: list[int]) -> torch.Tensor:
    return torch.cat([stream.next(count).inputs for count in counts])


def origin(rows: torch.Tensor) -> list[str]:
    """Which source each row is from: the only letter in it."""
    return ["".join(sorted({chr(c) for c in row.tolist() if 97 <= c < 256 and c != 124})) for row in rows]


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("weights", [(1,), (3, 1), (5, 1, 2)])
def test_targets_follow_inputs(tmp_path: Path, weights: tuple[float, ...], carry: bool) -> None:
    stream = Stream(corpus(tmp_path, weights), 8, T, seed=1, carry=carry)
    batch = next(iter(stream))
    assert batch.inputs.shape == batch.targets.shape == (8, T)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert batch.inputs.is_contiguous() and batch.targets.is_contiguous()


@pytest.mark.parametrize("carry", [False, True])
def test_an_epoch_visits_every_sequence_once(tmp_path: Path, carry: bool) -> None:
    data = corpus(tmp_path)
    split = data.train[0].train
    stream = Stream(data, 5, T, seed=3, carry=carry)
    if carry:
        stretch = (split.tokens - 1) // 5
        starts = [row * stretch + k * T for row in range(5) for k in range(stretch // T)]
    else:
        starts = [k * T for k in range((split.tokens - 1) // T)]
    expected = sorted(map(tuple, split.gather(np.array(starts), T).tolist()))
    epochs = [rows_of(stream, [len(starts)]) for _ in range(3)]
    for epoch in epochs:
        assert sorted(map(tuple, epoch.tolist())) == expected
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("weights", [(1,), (2, 1)])
def test_the_order_depends_only_on_seed_and_cursor(tmp_path: Path, weights: tuple[float, ...], carry: bool) -> None:
    data = corpus(tmp_path, weights)
    total = 3 * (data.train[0].train.tokens // T)  # past the end of an epoch
    straight = rows_of(Stream(data, 8, T, seed=5, carry=carry), [total])
    sizes = [1, 8, 3, 4, 16] * total
    cut = [sizes[i] for i in range(total) if sum(sizes[: i + 1]) <= total]
    stream = Stream(data, 8, T, seed=5, carry=carry)
    assert torch.equal(rows_of(stream, cut), straight[: sum(cut)])
    assert not torch.equal(rows_of(Stream(data, 8, T, seed=6, carry=carry), [total]), straight)
    for done in (0, 1, 8, 37, total // 2, total - 2):
        stream = Stream(data, 8, T, seed=5, carry=carry)
        if done:
            stream.next(done)
        cursor = json.loads(json.dumps(stream.cursor()))
        assert cursor["sequences"] == done
        again = Stream(data, 8, T, seed=5, carry=carry)
        again.next(11)
        again.seek(cursor)
        assert torch.equal(again.next(total - done).inputs, straight[done:])


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.5, 0.2, 0.3), (10, 1)])
def test_source_shares_match_the_weights_at_every_step(tmp_path: Path, weights: tuple[float, ...]) -> None:
    data = corpus(tmp_path, weights)
    names = origin(rows_of(Stream(data, 8, T, seed=2), [400]))
    for n in (1, 7, 50, 400):
        for number, weight in enumerate(weights):
            share = weight / sum(weights) * n
            assert abs(names[:n].count(chr(ord("a") + number)) - share) <= 1 + 1e-9


def test_carried_rows_continue_where_they_stopped(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    stream = Stream(data, 4, T, seed=1, carry=True)
    steps = ((data.train[0].train.tokens - 1) // 4) // T
    batches = [stream.next(4) for _ in range(2 * steps)]
    for before, after in pairwise(batches[:steps]):
        assert torch.equal(before.targets[:, -1], after.inputs[:, 0])
    # at the end of its stretch a row goes on with the stretch of the row after it
    assert torch.equal(batches[steps].inputs, batches[0].inputs.roll(-1, 0))


@pytest.mark.parametrize("weights", [(1, 1), (6, 1, 1), (10, 1)])
def test_carried_rows_are_shared_by_weight(tmp_path: Path, weights: tuple[float, ...]) -> None:
    stream = Stream(corpus(tmp_path, weights), 8, T, carry=True)
    first, second = origin(stream.next(8).inputs), origin(stream.next(8).inputs)
    assert first == second
    for number, weight in enumerate(weights):
        share = 8 * weight / sum(weights)
        assert abs(first.count(chr(ord("a") + number)) - share) < 1
    assert len(set(first)) == len(weights)


def test_cursors_that_do_not_fit(tmp_path: Path) -> None:
    one, two = corpus(tmp_path), corpus(tmp_path, (1, 1))
    with pytest.raises(InputError, match="saved over 1 sources, and the recipe names 2"):
        Stream(two, 4, T).seek(Stream(one, 4, T).cursor())
    with pytest.raises(InputError, match="saved carried over 4 rows, and is now carried over 2 rows"):
        Stream(one, 2, T, carry=True).seek(Stream(one, 4, T, carry=True).cursor())
    with pytest.raises(InputError, match="saved shuffled, and is now carried over 4 rows"):
        Stream(one, 4, T, carry=True).seek(Stream(one, 4, T).cursor())
    with pytest.raises(InputError, match="saved carried over 4 rows, and is now shuffled"):
        Stream(one, 4, T).seek(Stream(one, 4, T, carry=True).cursor())


def test_too_little_text_names_both_lengths(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    tokens = data.train[0].train.tokens
    with pytest.raises(InputError, match=rf"it has {tokens} training tokens, and sequences of 9999 take 10000"):
        Stream(data, 1, 9999)
    with pytest.raises(InputError, match=rf"over 900 rows: it has {tokens} training tokens, and sequences of 17 take"):
        Stream(data, 900, T, carry=True)
    with pytest.raises(InputError, match="2 sources need at least as many rows"):
        Stream(corpus(tmp_path, (1, 1)), 1, T, carry=True)


def test_windows_score_every_token_but_the_first_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose(4, 9000))
    split = packed(str(tmp_path / "a.txt"), sequence=T, validation=0.5).validation
    count = (split.tokens - 1) // T
    shown = list(windows(split, T, batch=3))
    assert torch.cat([w.targets for w in shown]).flatten().tolist() == split.read(1, count * T).tolist()
    assert torch.cat([w.inputs for w in shown]).flatten().tolist() == split.read(0, count * T).tolist()
    scored = split.read(1, count * T)
    assert sum(w.bytes for w in shown) == (scored < 256).sum()
    assert [len(w.inputs) for w in shown] == [3] * (count // 3) + [count % 3] * (count % 3 > 0)


def test_windows_of_all_text_count_all_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" + "雨 " * 500)
    bpe = {"type": "bpe", "vocab": 300}
    split = packed(str(tmp_path / "a.txt"), sequence=1, validation=0.4, tokenizer=bpe).validation
    first = split.bytes_in(split.read(0, 1))
    assert sum(w.bytes for w in windows(split, 1, batch=64)) + first == split.bytes
    assert sum(w.bytes for w in windows(split, split.tokens - 1)) + first == split.bytes


def test_fewer_windows_are_spread_and_stay_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{i:04d}" for i in range(2000)))
    split = packed(str(tmp_path / "a.txt"), sequence=8, validation=0.5).validation
    some = [w.inputs[0, :4].tolist() for w in windows(split, 8, limit=5)]
    places = [int(bytes(row)) for row in some]
    assert len(places) == 5
    assert np.ptp(np.diff(places)) <= 2 and places[-1] - places[0] > 700
    assert some == [w.inputs[0, :4].tolist() for w in windows(split, 8, limit=5)]


def test_windows_of_short_and_empty_splits(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 200)
    data = packed(str(tmp_path / "a.txt"), sequence=32, validation=0.05)
    [only] = windows(data.validation, 32)
    assert only.inputs.shape == (1, 10) and only.bytes == 9  # ten bytes and their end, of which the end weighs nothing
    assert list(windows(packed(str(tmp_path / "a.txt"), sequence=32, validation=0).validation, 32)) == []
