"""Facts in text: their positions, the text around them, and the errors of bad files."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.errors import InputError
from synthe_core.tasks import TASKS
from synthe_core.tasks.haystack import Haystack, hide
from synthe_core.tasks.prose import PROSE
from synthe_core.tasks.task import UNSCORED


def make(name: str, **settings):
    return TASKS[name](TASKS[name].Config(**settings))


def text_of(row: np.ndarray) -> str:
    return bytes(row.astype(np.uint8).tolist()).decode()


def test_the_prose_contains_no_needles():
    assert PROSE.isascii()
    assert not re.search(r"\d|pass key|word of the", PROSE)
    assert set(".,\n ") >= set(re.sub(r"[A-Za-z]", "", PROSE))
    sentences = Haystack(None, "x").sentences
    assert len(sentences) > 50 and len({bytes(s) for s in sentences}) == len(sentences)


def test_rows_are_complete_sentences_except_at_their_ends():
    rows = Haystack(None, "x").cut(RandomState(0), 5, 700)
    known = {" ".join(s.split()) for s in PROSE.split(".")}
    for row in rows:
        inner = text_of(row).split(". ")[1:-1]
        assert len(inner) > 4
        assert set(inner) <= known
    assert len({bytes(row) for row in rows}) == 5


@pytest.mark.parametrize("size", [0, 1, 3, 50])
@pytest.mark.parametrize("count", [1, 4])
def test_facts_are_inserted_before_words_in_order_and_the_text_is_unchanged(size, count):
    rng = RandomState(0)
    text = rng.choice(np.frombuffer(b"ab \n", dtype=np.uint8), size=(300, size))
    facts = np.tile(np.frombuffer(b"<0><1><2><3>"[: 3 * count], dtype=np.uint8).reshape(1, count, 3), (300, 1, 1))
    whole, depth = hide(rng, text, facts)
    assert whole.shape == (300, size + 3 * count) and depth.shape == (300, count)
    for row in range(300):
        matches = bytes(whole[row]).decode()
        assert re.sub(r"<\d>", "", matches).encode() == bytes(text[row])
        assert re.findall(r"<(\d)>", matches) == [str(i) for i in range(count)]
        for i in range(count):
            place = matches.index(f"<{i}>")
            assert place == 0 or matches[place - 1] in " \n>"
            before = len(re.sub(r"<\d>", "", matches[:place]))
            assert depth[row, i] == (min(9, 10 * before // size) if size else 0)


@pytest.mark.parametrize("name", ["passkey", "needle"])
def test_facts_are_at_every_depth(name):
    task = make(name, length=1_500)
    inputs, targets, slices = task.batch(3_000, RandomState(1))
    depth = slices["depth"][:, -1]
    assert (slices["depth"][targets != UNSCORED].reshape(3_000, -1) == depth[:, None]).all()
    assert np.abs(np.bincount(depth, minlength=10) / 3_000 - 0.1).max() < 0.03
    for row in (0, 1, 2):
        answer = "".join(map(chr, targets[row][targets[row] != UNSCORED]))
        assert f" is {answer}. " in text_of(inputs[row])


def test_needles_have_different_keys_and_each_is_queried_equally_often():
    task = make("needle", length=500, needles=6)
    which = []
    for row in task.batch(1_200, RandomState(2)).inputs:
        nouns = re.findall(r"The word of the (\w+) is [a-z]{5}\. ", text_of(row))
        assert len(set(nouns)) == 6
        which.append(nouns.index(re.search(r"What is the word of the (\w+)\?", text_of(row))[1]))
    assert np.abs(np.bincount(which, minlength=6) / 1_200 - 1 / 6).max() < 4 * np.sqrt(5 / 36 / 1_200)


def test_windows_of_a_file_wrap_around_its_end(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij")
    rows = Haystack(str(path), "x").cut(RandomState(0), 200, 25)
    assert {text_of(row)[0] for row in rows} == set("abcdefghij")
    assert all(text_of(row) in "abcdefghij" * 4 for row in rows)
    task = make("passkey", length=200, text=str(path))
    inputs, targets, _ = task.batch(20, RandomState(0))
    assert np.array_equal(task.solve(inputs)[targets != UNSCORED], targets[targets != UNSCORED])
    assert "hijabc" in text_of(inputs[0])


def test_bad_files_are_reported_in_one_line(tmp_path):
    path = tmp_path / "text.txt"
    with pytest.raises(InputError, match=r"cannot read '.*text\.txt': No such file"):
        make("passkey", text=str(path))
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        make("needle", text=str(path))
    path.write_text("He said: The pass key is what he had lost.")
    with pytest.raises(InputError, match="contains 'The pass key is '"):
        make("passkey", text=str(path))
    path.write_text("key is said at the end of a file that begins with it. The pass ")
    with pytest.raises(InputError, match="contains"):
        make("passkey", text=str(path))


def test_the_question_may_occur_in_the_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("He asked: What is the pass key? Nobody knew. What is the word of the garden? Nobody knew that. ")
    for name in ("passkey", "needle"):
        task = make(name, length=400, text=str(path))
        inputs, targets, _ = task.batch(20, RandomState(0))
        assert np.array_equal(task.solve(inputs), targets)
